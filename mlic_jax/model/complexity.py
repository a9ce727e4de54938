"""How large a codec is and how much it multiplies, part by part, for any config: mlic-jax describe.

The convention is that of the authors' code, so that figures compare:

* Parameters are the live ones. The step of a slice is built for the full width of y (see slices.py); a parameter of it
  is live when it can change what the step returns. What belongs to slices that are not decoded yet is not, nor are the
  contexts that are silent for the first slice.
* kMACs are the multiply-accumulates of convolutions and linear layers, in thousands per pixel of the picture, without
  attention products, GDN and the density of z. A convolution counts at every position of its coarser side. Every layer
  of a step counts once at every position of y. This code runs many of them on the one parity that a pass needs, and
  multiplies by the zeros that fill a step to full width.

Nothing here knows a layer or a context by name: positions are counted where a layer is called (on shapes alone), and
what is live is read off a gradient, so that a new context is counted without a line here.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import registry
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.slices import SliceStep
from mlic_jax.runtime.executable_cache import kept

ENCODER_ONLY = ("g_a", "h_a")    # parts that a decoder does not run
KERNEL, BIAS = "kernel", "bias"  # of convolutions and linear layers, in this code and in flax

Path = tuple[str, ...]


class Part(NamedTuple):
  """A part of a codec."""
  name: str
  parameters: int  # live ones
  kmacs: float     # thousands of multiply-accumulates per pixel


def describe(config: CodecConfig, height: int = 512, width: int = 768) -> list[Part]:
  """The parts of a codec, in the order in which they run, for a picture of height x width padded as the codec does."""
  multiple = side_multiple(config)
  padded = [-(-side // multiple) * multiple for side in (height, width)]
  sizes, positions = _layers(config, *padded)
  y_positions = math.prod(padded) * 4**2 // multiple**2
  parameters: Counter[str] = Counter()
  macs: Counter[str] = Counter()
  for path, size in sizes.items():
    part = path[0] if len(path) > 1 else "gains"
    parameters[part] += size
    macs[part] += size * positions[path[:-1]] if path[-1] == KERNEL else 0
  for step in live_parameters(config):
    for path, size in step.items():
      part = re.sub("^contexts_|_(anchor|nonanchor|both)$", "", path[0])
      parameters[part] += size
      macs[part] += size * y_positions if path[-1] == KERNEL else 0
  order = ["g_a", "h_a", "z_prior", "h_s", *config.contexts, "entropy", "map", "lrp", "gains", "g_s"]
  names = sorted(parameters, key=lambda name: order.index(name) if name in order else len(order))
  return [Part(name, parameters[name], macs[name] / (1000 * height * width)) for name in names]


def live_parameters(config: CodecConfig) -> list[dict[Path, int]]:
  """How many elements of each parameter are live, for the step of every slice.

  Live is what has a gradient that is not exactly zero, at random parameters and a random input. Zeros of the
  architecture (inputs that are not decoded, masks, silent contexts) are exact, and others do not happen by chance, but
  for a bias that cancels in a softmax, whose gradient is rounding residue: a bias counts when its channel of the kernel
  does.
  """
  step, M, cs = SliceStep(config), config.M, config.slice_channels
  side = 2 * config.window_size + 2  # of a latent where every place of a window and every tap of a kernel is met
  rng = np.random.default_rng(0)
  normal = lambda channels: rng.standard_normal((1, side, side, channels), np.float32)
  hyper, decoded, y, noise = (normal(channels) for channels in (2 * M, M, cs, cs))
  shapes = jax.eval_shape(step.init, jax.random.key(0), 0, hyper, decoded, y)["params"]
  # Small enough that nothing saturates: a likelihood at its floor has no gradient.
  small = lambda shape: np.float32(0.3 / math.prod(shape[:-1])**0.5)
  params = jax.tree.map(lambda p: small(p.shape) * rng.standard_normal(p.shape, np.float32), shapes)

  def response(params, k):
    out = step.apply({"params": params}, k, hyper, decoded * (jnp.arange(M) < k * cs), 0.3 * y, NOISE, 0.3 * noise)
    return sum((rng.standard_normal(each.shape, np.float32) * each).sum() for each in jax.tree.leaves(out))

  def count(params, k):
    live = {path: g != 0 for path, g in _leaves(jax.grad(response)(params, k)).items()}
    for path in live:
      if path[-1] == BIAS and (kernel := (*path[:-1], KERNEL)) in live:
        live[path] |= live[kernel].any(axis=range(live[kernel].ndim - 1))
    return {path: mask.sum() for path, mask in live.items()}

  # It runs a few times on next to nothing: to compile it well would take longer.
  count = kept(count, f"{__name__}.count", registry.described(build(config)),
               compiler_options={"xla_backend_optimization_level": 0})
  counts = [count(params, k) for k in np.arange(config.num_slices, dtype=np.int32)]
  return [{path: int(size) for path, size in each.items()} for each in counts]


def _layers(config: CodecConfig, height: int, width: int) -> tuple[dict[Path, int], Counter[Path]]:
  """Sizes of all parameters outside the slice steps, and at how many positions each layer with a kernel is called.

  Where a layer changes the resolution these are the positions of its coarser side, the output of a strided convolution
  and the input of a transposed one: there every tap multiplies once."""
  positions: Counter[Path] = Counter()

  def note(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == "__call__" and context.module.has_variable("params", KERNEL):
      before = jax.tree.leaves((args, kwargs))[0]
      positions[context.module.path] += min(math.prod(before.shape[:-1]), math.prod(out.shape[:-1]))
    return out

  x = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
  quality = 1.0 if config.num_rates else None
  with nn.intercept_methods(note):
    variables = jax.eval_shape(lambda x: build(config).init(jax.random.key(0), x, quality, method=_but_the_slices), x)
  return {path: math.prod(leaf.shape) for path, leaf in _leaves(variables["params"]).items()}, positions


def _but_the_slices(codec, x: jax.Array, quality: float | None) -> jax.Array:
  """All of a codec that is not a slice step."""
  y, z = codec.analyze(x, quality)
  codec.hyper(codec.round_z(z))
  return codec.synthesize(y, quality)


def _leaves(tree: Any) -> dict[Path, Any]:
  return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
