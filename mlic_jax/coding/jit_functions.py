"""The jitted functions of a codec. Encoder and decoder call the same ones.

The slice index is traced, so each image size compiles start, nonanchors, advance and finish once; the encoder also
compiles analyze. The other functions are small. The module is static, and modules of equal configs are equal, so codecs
of one architecture share compiled functions. They are cached for recent sizes (runtime/shape_cache.py). `positions` are
the level coordinates of scales in the CDF table (likelihoods.scale_level).
"""
import jax
import jax.numpy as jnp

from mlic_jax.model import distributions, registry
from mlic_jax.model.checkerboard import pack, unpack
from mlic_jax.runtime.shape_cache import shape_cached


@shape_cached(size=2, module=0, describe=registry.description)
def analyze(module, variables, image, quality):
  """Maps a padded image (1, H, W, 3) uint8 to y (1, h, w, M) and z (1, h/4, w/4, N). Encoder only."""
  return module.apply(variables, image / 255, quality, method="analyze")


@shape_cached(size=3, module=0, describe=registry.description)
def round_z(module, variables, y, z):
  """Returns the int32 symbols of z, and whether y and z are finite. Encoder only."""
  return module.apply(variables, z, method="round_z"), jnp.isfinite(y).all() & jnp.isfinite(z).all()


@shape_cached(size=0)
def symbols(y, k, mean, anchors):
  """Returns the int32 symbols (1, h, w/2, Cs) of one checkerboard parity of slice k of y. Encoder only.

  `anchors` is traced, so that both parities share one program."""
  channels = mean.shape[-1]
  y = jax.lax.dynamic_slice_in_dim(y, k * channels, channels, axis=-1)
  return jnp.round(pack(y, anchors) - mean).astype(jnp.int32)


@shape_cached(size=2, module=0, describe=registry.description)
def start(module, variables, z_symbols):
  """Maps the symbols of z to hyper features, and to positions, prior and state of the anchors of slice 0."""
  hyper = module.apply(variables, z_symbols, method="hyper")
  state = module.apply(variables, hyper, method="initial_state")
  prior, state = module.apply(variables, 0, hyper, state, method="anchor_prior")
  return hyper, prior.level, prior, state


@shape_cached(size=3, module=0, describe=registry.description)
def nonanchors(module, variables, k, hyper, state, symbols):
  """Maps the symbols of the anchors of slice k to positions, prior and state of its non-anchors."""
  prior, state = module.apply(variables, k, hyper, state, symbols, method="nonanchor_prior")
  return prior.level, prior, state


@shape_cached(size=3, module=0, describe=registry.description)
def advance(module, variables, k, hyper, state, symbols):
  """Maps the symbols of the non-anchors of slice k to positions, prior and state of the anchors of slice k + 1."""
  state = module.apply(variables, k, hyper, state, symbols, method="finish_slice")
  prior, state = module.apply(variables, k + 1, hyper, state, method="anchor_prior")
  return prior.level, prior, state


@shape_cached(size=0)
def rows(prior):
  """Returns the scale levels of a pass in a file that is not portable: its CDF rows, without those of the shape."""
  return prior.row


@shape_cached(size=3, module=0, describe=registry.description)
def finish(module, variables, k, hyper, state, symbols, quality):
  """Maps the symbols of the non-anchors of the last slice to the image (1, H, W, 3) uint8."""
  state = module.apply(variables, k, hyper, state, symbols, method="finish_slice")
  return to_uint8(module.apply(variables, state.decoded, quality, method="synthesize"))


@shape_cached(size=2, module=0, describe=registry.description)
def z_bits(module, variables, z_symbols):
  """Returns the bits of the symbols of z, per element."""
  return module.apply(variables, z_symbols, method="z_bits")


@shape_cached(size=1, module=0, describe=registry.description)
def y_bits(module, symbols, coded, parameters, anchors):
  """Returns the bits of the symbols of one parity, per element: (1, h, w, Cs), with zeros at the other parity and where
  `coded` is False. `parameters` are the scale and the further parameters of the distribution. `anchors` is traced as
  in `symbols`."""
  bits = distributions.make_distribution(module.config).bits(symbols, *parameters)
  return unpack(jnp.where(coded, bits, 0), anchors)


def to_uint8(x_hat):
  """x_hat in [0, 1] -> the nearest of 256 levels."""
  return jnp.round(jnp.clip(x_hat, 0, 1) * 255).astype(jnp.uint8)
