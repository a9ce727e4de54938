"""The compiled functions of a codec, the same for encoder and decoder.

The slice index is traced, so an image size compiles start, nonanchors, advance and finish, the encoder also analyze;
the others are small. The module is static and equal for equal configs: codecs of one architecture share compiled
functions. They are cached for the sizes used last (runtime/shape_cache.py). `positions` are those of the scales in the
coding table (likelihoods.scale_place).
"""
import jax
import jax.numpy as jnp

from mlic_jax.model import registry
from mlic_jax.model.checkerboard import pack, unpack
from mlic_jax.model.likelihoods import gaussian_bits
from mlic_jax.runtime.shape_cache import shape_cached


@shape_cached(size=2, module=0, describe=registry.described)
def analyze(module, variables, image, quality):
  """An image (1, H, W, 3) uint8, padded -> y (1, h, w, M), z (1, h/4, w/4, N). The encoder only."""
  return module.apply(variables, image / 255, quality, method="analyze")


@shape_cached(size=3, module=0, describe=registry.described)
def round_z(module, variables, y, z):
  """z -> int32 symbols of z, and whether y and z are finite. The encoder only."""
  return module.apply(variables, z, method="round_z"), jnp.isfinite(y).all() & jnp.isfinite(z).all()


@shape_cached(size=0, static=3)
def symbols(y, k, mean, anchors):
  """int32 symbols (1, h, w/2, Cs) of one parity of slice k of y. The encoder only."""
  channels = mean.shape[-1]
  y = jax.lax.dynamic_slice_in_dim(y, k * channels, channels, axis=-1)
  return jnp.round(pack(y, anchors) - mean).astype(jnp.int32)


@shape_cached(size=2, module=0, describe=registry.described)
def start(module, variables, z_symbols):
  """Symbols of z -> hyper; table positions, prior and state of the anchors of slice 0."""
  hyper = module.apply(variables, z_symbols, method="hyper")
  state = module.apply(variables, hyper, method="initial_state")
  prior, state = module.apply(variables, 0, hyper, state, method="anchor_prior")
  return hyper, prior.place, prior, state


@shape_cached(size=3, module=0, describe=registry.described)
def nonanchors(module, variables, k, hyper, state, symbols):
  """Symbols of the anchors of slice k -> table positions, prior and state of its non-anchors."""
  prior, state = module.apply(variables, k, hyper, state, symbols, method="nonanchor_prior")
  return prior.place, prior, state


@shape_cached(size=3, module=0, describe=registry.described)
def advance(module, variables, k, hyper, state, symbols):
  """Symbols of the non-anchors of slice k -> table positions, prior and state of the anchors of slice k + 1."""
  state = module.apply(variables, k, hyper, state, symbols, method="finish_slice")
  prior, state = module.apply(variables, k + 1, hyper, state, method="anchor_prior")
  return prior.place, prior, state


@shape_cached(size=0)
def rows(prior):
  """Rows of the coding table for files that are not portable."""
  return prior.row


@shape_cached(size=3, module=0, describe=registry.described)
def finish(module, variables, k, hyper, state, symbols, quality):
  """Symbols of the non-anchors of the last slice -> the image (1, H, W, 3) uint8."""
  state = module.apply(variables, k, hyper, state, symbols, method="finish_slice")
  return _to_uint8(module.apply(variables, state.decoded, quality, method="synthesize"))


@shape_cached(size=2, module=0, describe=registry.described)
def z_bits(module, variables, z_symbols):
  """Bits of the symbols of z, per element."""
  return module.apply(variables, z_symbols, method="z_bits")


@shape_cached(size=0, static=2)
def y_bits(symbols, scale, anchors):
  """Bits of the symbols of one parity, per element, (1, h, w, Cs) with zeros on the other."""
  return unpack(gaussian_bits(symbols, 0.0, scale), anchors)


def _to_uint8(x_hat):
  return jnp.round(jnp.clip(x_hat, 0, 1) * 255).astype(jnp.uint8)
