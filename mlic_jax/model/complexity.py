"""Number of parameters and multiply-accumulates of each part of a codec, for `mlic-jax describe`.

The counts follow the authors' code, so that figures compare:

* Only live parameters count. The step of a slice has the full width of y (see slices.py), and a parameter is live if it
  can change the result of the step. Weights of undecoded channels are not live, nor are inactive contexts of the first
  slice.
* kMACs are thousands of multiply-accumulates per pixel of the image in convolutions and linear layers. Attention
  products, GDN and the density of z are left out. A convolution counts at every position of its coarser side. Every
  layer of a step counts once at every position of y, although many layers run on one parity only, and steps also
  multiply the zeros of undecoded channels.

Positions are counted in each call of a layer, on shapes only, and live parameters are found by a gradient. New layers
and contexts therefore need no code here.
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
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.model.param_shapes import apply_without_slices, step_param_shapes
from mlic_jax.model.quantizers import NOISE
from mlic_jax.model.slices import SliceStep
from mlic_jax.runtime.executable_cache import with_executable_cache

ENCODER_ONLY = ("g_a", "h_a")    # parts that run in the encoder only
KERNEL, BIAS = "kernel", "bias"  # of convolutions and linear layers, in this code and in flax

Path = tuple[str, ...]


class Part(NamedTuple):
  """Complexity of a part of a codec."""
  name: str
  parameters: int  # number of live parameters
  kmacs: float     # thousands of multiply-accumulates per pixel


def describe(config: CodecConfig, height: int = 512, width: int = 768) -> list[Part]:
  """Return the parts of a codec in the order in which they run, for a padded image of height x width pixels."""
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
  """Return the number of live elements of each parameter, for the step of every slice.

  An element is live if its gradient at random parameters and a random input is not zero. Zeros of the architecture
  (undecoded channels, masks, inactive contexts) are exact. Other zeros do not occur by chance, except for biases that
  cancel in a softmax. A bias is therefore live if its channel of the kernel is.
  """
  step, M, cs = SliceStep(config), config.M, config.slice_channels
  side = 2 * config.window_size + 2  # of a latent that has every position of a window and every tap of a kernel
  rng = np.random.default_rng(0)
  normal = lambda channels: rng.standard_normal((1, side, side, channels), np.float32)
  hyper, decoded, y, noise = (normal(channels) for channels in (2 * M, M, cs, cs))
  shapes = step_param_shapes(config)
  # Small, because likelihoods at their lower bound have no gradient.
  small = lambda shape: np.float32(0.3 / math.prod(shape[:-1])**0.5)
  params = jax.tree.map(lambda p: small(p.shape) * rng.standard_normal(p.shape, np.float32), shapes)

  def response(params, k):
    out = step.apply({"params": params}, k, hyper, decoded * (jnp.arange(M) < k * cs), 0.3 * y, NOISE, 0.3 * noise)
    return sum((rng.standard_normal(each.shape, np.float32) * each).sum() for each in jax.tree.leaves(out))

  def count(params, k) -> dict[Path, int]:
    live = {path: np.asarray(g) != 0 for path, g in _leaves(gradient(params, k)).items()}
    for path in live:
      if path[-1] == BIAS and (kernel := (*path[:-1], KERNEL)) in live:
        live[path] |= live[kernel].any(axis=tuple(range(live[kernel].ndim - 1)))
    return {path: int(np.count_nonzero(mask)) for path, mask in live.items()}

  # It runs a few times on small arrays, so that optimization in the compiler takes longer than it saves. NumPy counts,
  # because loops over all parameters are slow without.
  gradient = with_executable_cache(jax.grad(response), f"{__name__}.gradient", registry.description(build(config)),
                                   compiler_options={"xla_backend_optimization_level": 0})
  return [count(params, k) for k in np.arange(config.num_slices, dtype=np.int32)]


def _layers(config: CodecConfig, height: int, width: int) -> tuple[dict[Path, int], Counter[Path]]:
  """Return sizes of all parameters outside the slice steps, and the number of positions of each layer with a kernel.

  Layers that change the resolution count at their coarser side: the output of a strided convolution and the input of a
  transposed one. Every tap multiplies once there."""
  positions: Counter[Path] = Counter()

  def count_positions(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if context.method_name == "__call__" and context.module.has_variable("params", KERNEL):
      before = jax.tree.leaves((args, kwargs))[0]
      positions[context.module.path] += min(math.prod(before.shape[:-1]), math.prod(out.shape[:-1]))
    return out

  x = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
  quality = 1.0 if config.num_rates else None
  with without_initializers(), nn.intercept_methods(count_positions):
    init = lambda x: build(config).init(jax.random.key(0), x, quality, method=apply_without_slices)
    variables = jax.eval_shape(init, x)
  return {path: math.prod(leaf.shape) for path, leaf in _leaves(variables["params"]).items()}, positions


def _leaves(tree: Any) -> dict[Path, Any]:
  return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
