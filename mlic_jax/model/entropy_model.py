"""The entropy model without the transforms, as pure functions of its parameters; docs/research.md uses them.

    params = init(config, key)                     those of a codec are variables["params"]["slices"]
    coded = predict(config, params, hyper, y)      y_hat, bits, mean, scale: (B, h, w, M) each
    modules = intermediates(config, params, hyper, y)   outputs of contexts, entropy parameters and LRP
    y, hyper = latents(config, variables, x)       latents of images, as inputs of entropy models

`config` is static under jax.jit; all other arguments may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.convolution import matmul_precision
from mlic_jax.model.mlic import PRECISION, build
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slices import Slices, SlicesOutput, SliceStep


def init(config: CodecConfig, key: jax.Array) -> dict[str, Any]:
  """Return initial parameters of all slices. Their leading axis is the slice."""
  hyper = jax.ShapeDtypeStruct((1, 4, 4, 2 * config.M), jnp.float32)
  # Any method creates all parameters, and a scan is slow to trace.
  return Slices(config).lazy_init(key, hyper, method=Slices.initial_state)["params"]


def predict(config: CodecConfig, params: dict[str, Any], hyper: jax.Array, y: jax.Array,
            key: jax.Array | None = None, quantizer: Quantizer | None = None, scan_groups: tuple[int, ...] = (),
            precision: str = PRECISION) -> SlicesOutput:
  """Return y_hat, bits and prior of y (B, h, w, M), given hyper features (B, h, w, 2M). h and w are multiples of 4.

  Without a key the bits are those of a file, and they have no gradient through rounding. With a key they are those of
  training, with noise for rounding. Another `quantizer` draws its random numbers from the key. `scan_groups` is that of
  MLIC, and `precision` its entropy_precision.
  """
  quantizer = quantizer or (ROUNDING if key is None else NOISE)
  draws = quantizer.draws(key, y.shape)
  with matmul_precision(precision):
    slices = Slices(config, scan_groups=scan_groups)
    coded: Any = slices.apply({"params": params}, hyper, y, quantizer, draws, method="scan")
    return coded


def intermediates(config: CodecConfig, params: dict[str, Any], hyper: jax.Array, y: jax.Array,
                  key: jax.Array | None = None, quantizer: Quantizer | None = None) -> list[dict[str, jax.Array]]:
  """Returns the output of every module of the entropy model, one {name: array} for each slice.

  The arguments are those of `predict`. Slices are applied apart from each other, so `capture_intermediates` and
  `nn.tabulate` of Flax do not see into them; this function does. A name is the path of a module:

    contexts_NAME, contexts_NAME/...            features (B, h, w, features), or (B, h, w/2, features) of contexts that
                                                need the anchors
    entropy_anchor, entropy_nonanchor           (B, h, w/2, 2 Cs): scales before their lower bound, then means; more
                                                if the distribution has more outputs
    lrp_anchor, lrp_nonanchor                   (B, h, w, Cs) before 0.5 tanh
    map_anchor, map_nonanchor or map_both       of models with a selection map

  A context that takes no part in a slice is absent there. A module that is called twice has a leading axis of calls.
  """
  quantizer = quantizer or (ROUNDING if key is None else NOISE)
  draws, cs, step = quantizer.draws(key, y.shape), config.slice_channels, SliceStep(config)
  decoded, found = jnp.zeros_like(y), []
  with jax.default_matmul_precision(PRECISION):
    for k in range(config.num_slices):
      of_slice = lambda each, k=k: each[..., k * cs:(k + 1) * cs]
      step_params = {"params": jax.tree.map(lambda leaf, k=k: leaf[k], params["steps"])}
      (decoded, _), state = step.apply(step_params, k, hyper, decoded, of_slice(y), quantizer,
                                       jax.tree.map(of_slice, draws), capture_intermediates=True,
                                       mutable=["intermediates"])
      outputs = flatten_dict(state["intermediates"])
      found.append({"/".join(path[:-1]): calls[0] if len(calls) == 1 else jnp.stack(calls)
                    for path, calls in outputs.items() if len(path) > 1 and path[0] != "distribution_parameters"})
  return found


def latents(config: CodecConfig, variables: dict[str, Any], x: jax.Array,
            quality: jax.Array | float | None = None) -> tuple[jax.Array, jax.Array]:
  """Return y (B, h, w, M) and hyper features (B, h, w, 2M) of images x (B, H, W, 3) in [0, 1]."""
  run: Callable[..., Any] = lambda *args, method: build(config).apply(variables, *args, method=method)
  y, z = run(x, quality, method="analyze")
  return y, run(run(z, method="round_z"), method="hyper")
