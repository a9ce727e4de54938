"""The codec as one linen module. Read this first.

    x --g_a--> y --h_a--> z --round--> z_hat --h_s--> hyper --.
               |                                              v
               '----------------------------> slices: prior, round, y_hat --g_s--> x_hat

`MLIC.__call__` computes reconstruction and bits for training and for the bit estimate. `MLIC.code` does so from given
latents. The other methods are steps of the same computation, for the encoder and the decoder (coding/codec.py).
"""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.kernels.convolution import matmul_precision
from mlic_jax.model import contexts, distributions, registry, selection_map, transforms
from mlic_jax.model.hyper import HyperAnalysis, HyperSynthesis
from mlic_jax.model.likelihoods import FactorizedPrior
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slice_groups import choose_groups
from mlic_jax.model.slices import Prior, Slices, State

# Matmul precision of coding and evaluation. TPUs and recent GPUs multiply in bfloat16 or TF32 by default: a prior that
# differs in the last bits picks another CDF row, and pixels differ by up to three levels.
PRECISION = "highest"


class CodecOutput(NamedTuple):
  """Reconstruction and bits of a batch of images. h = H/stride, w = W/stride; most transforms have stride 16."""
  x_hat: jax.Array   # (B, H, W, 3), not clipped
  y_hat: jax.Array   # (B, h, w, M), decoded latent before the inverse gain
  y_bits: jax.Array  # (B, h, w, M), bits per element
  z_bits: jax.Array  # (B, h/4, w/4, N), bits per element
  map_loss: jax.Array | None = None  # (B,), loss of the selection map in nats per element; None without a map


class MLIC(nn.Module):
  """A learned image codec of the MLIC family (Jiang et al., ACM MM 2023; MLIC++, 2023).

  Images are (B, H, W, 3) in [0, 1]. H and W are multiples of `side_multiple(config)`, mostly 64. `quality` is for
  variable-rate codecs (config.num_rates > 0): a scalar or (B,) in 1..num_rates. Fractions interpolate between two
  learned rate points.

  Attributes:
    config: the architecture.
    transform_dtype: dtype of g_a and g_s, such as bfloat16 on accelerators. y, x_hat and the entropy path stay float32.
    remat: rematerialize blocks and slices in the gradient, to save memory.
    transform_precision: matmul precision of g_a, g_s and h_a, as in jax.default_matmul_precision. None is that of the
      caller, which is bfloat16 on TPUs and TF32 on recent GPUs unless JAX is configured otherwise.
    entropy_precision: matmul precision of the entropy path in `code`, as in jax.default_matmul_precision, or
      "high_gradients" (kernels/convolution.py). Layers that return means, scales and residual predictions have full
      precision.
    scan_unroll: slices per iteration of the scan over slices; num_slices means no loop. 0 means groups for gradients on
      CPU, and 1 otherwise. Results differ by rounding only.
    scan_groups: sizes of consecutive groups of slices, each a loop of its own (model/slice_groups.py). () means one
      loop, or what `scan_unroll` says. Results differ by rounding only.
    packed: the scan over slices reads and writes a few vectors in place of many arrays, for training on GPUs
      (kernels/packed_scan.py). Results differ by rounding only.
    for_tpu: the scan over slices is arranged for training on TPUs. Both parities are packed once for all slices,
      attention has positions or windows in the lanes, contexts project queries, keys and values together, and the
      gradient of a softmax keeps its result alone. Results differ by rounding only.
    own_programs: every slice is a call of an `own_program` (runtime/program_chain.py), which the slices of a group
      share, for training on one CPU device. Results differ by rounding only.

  The defaults are those of coding and evaluation. Training on accelerators chooses others.
  """
  config: CodecConfig
  transform_dtype: jax.typing.DTypeLike = jnp.float32
  remat: bool = False
  transform_precision: str | None = PRECISION
  entropy_precision: str = PRECISION
  scan_unroll: int = 0
  scan_groups: tuple[int, ...] = ()
  packed: bool = False
  for_tpu: bool = False
  own_programs: bool = False

  def setup(self):
    config = self.config
    chosen = transforms.find(config.transforms)
    self.g_a, self.g_s = chosen.Analysis(config, self.remat), chosen.Synthesis(config, self.remat)
    self.h_a, self.h_s = HyperAnalysis(config), HyperSynthesis(config)
    self.z_prior = FactorizedPrior(config.N)
    self.slices = Slices(config, self.scan_unroll, self.scan_groups, self.packed, self.for_tpu,
                         self.own_programs)
    if config.num_rates:
      # The initial gains cover a range around 1. Training learns the rates themselves.
      spread = lambda _: jnp.tile(jnp.linspace(-0.8, 0.8, config.num_rates)[:, None], (1, config.M))
      self.log_gain = self.param("log_gain", spread)
      self.log_inverse_gain = self.param("log_inverse_gain", lambda key: -spread(key))

  def __call__(self, x: jax.Array, quality: jax.Array | float | None = None, num_arrived: jax.Array | None = None,
               first: jax.Array | int = 0, quantizer: Quantizer | None = None) -> CodecOutput:
    """Return reconstruction and bits of images x (B, H, W, 3). The other arguments are those of `code`."""
    return self.code(*self.analyze(x, quality), quality, num_arrived, first, quantizer)

  def code(self, y: jax.Array, z: jax.Array, quality: jax.Array | float | None = None,
           num_arrived: jax.Array | None = None, first: jax.Array | int = 0,
           quantizer: Quantizer | None = None) -> CodecOutput:
    """Return reconstruction and bits of given latents.

    Args:
      y: (B, h, w, M), multiplied by the gain of its rate point.
      z: (B, h/4, w/4, N).
      quality: scalar or (B,); None for codecs of one rate.
      num_arrived: (B,) number of slices that reach the decoder. Missing slices are their means and cost no bits. None
        means all slices.
      first: index of the first image in a larger batch. The random numbers of an image do not depend on the split.
      quantizer: stands for rounding. The default is NOISE (the rate of training) with an rng "noise", else ROUNDING. A
        quantizer that draws random numbers draws them from this rng.
    """
    quantizer = quantizer or (NOISE if self.has_rng("noise") else ROUNDING)
    draws = lambda latent: quantizer.draws(self.make_rng("noise") if quantizer.draw else None, latent.shape, first)
    with matmul_precision(self.entropy_precision):
      medians, y_draws, z_draws = self.z_prior.medians, draws(y), draws(z)
      # Two calls, so that the medians cancel exactly in both results and get no gradient from noise.
      received, _ = quantizer.quantize(z - medians, z_draws)
      residual = z - medians
      _, counted = quantizer.quantize(residual, z_draws)
      z_bits = self.z_prior.bits(z + (counted - residual))
      coded = self.slices.scan(self.h_s(received + medians), y, quantizer, y_draws, num_arrived, self.remat)
    map_loss = None
    if coded.keep is not None:
      map_loss = selection_map.cross_entropy(self.config, y - coded.mean, coded.keep).mean((1, 2, 3))
    return CodecOutput(self.synthesize(coded.y_hat, quality), coded.y_hat, coded.bits, z_bits, map_loss)

  def analyze(self, x: jax.Array, quality: jax.Array | float | None = None) -> tuple[jax.Array, jax.Array]:
    """Return y (B, h, w, M), multiplied by the gain of its rate point, and z (B, h/4, w/4, N).

    ValueError if a side of x is not a multiple of `side_multiple`."""
    multiple = side_multiple(self.config)
    if any(side % multiple for side in x.shape[1:3]):
      raise ValueError(f"images of {x.shape[1]}x{x.shape[2]}; height and width have to be multiples of {multiple}")
    y = self.latent(x, quality)
    return y, self.hyper_latent(y)

  def latent(self, x: jax.Array, quality: jax.Array | float | None = None) -> jax.Array:
    """Return y as `analyze` does, without z. The sides of x (B, H, W, 3) are multiples of the stride of y."""
    y = self._transform(self.g_a, x)
    if self.config.num_rates:
      y = y * self._gain("log_gain", quality)
    return y

  def hyper_latent(self, y: jax.Array) -> jax.Array:
    """Return z (B, h/4, w/4, N) of y (B, h, w, M), multiplied by the gain of its rate point."""
    with self._transform_precision():
      return self.h_a(y)

  def synthesize(self, y_hat: jax.Array, quality: jax.Array | float | None = None) -> jax.Array:
    """Return x_hat (B, H, W, 3), not clipped, of y_hat (B, h, w, M)."""
    if self.config.num_rates:
      y_hat = y_hat * self._gain("log_inverse_gain", quality)
    return self._transform(self.g_s, y_hat)

  def round_z(self, z: jax.Array) -> jax.Array:
    """Return the int32 symbols of z (B, h/4, w/4, N)."""
    return jnp.round(z - self.z_prior.medians).astype(jnp.int32)

  def z_bits(self, z_symbols: jax.Array) -> jax.Array:
    """Return the bits per element of symbols of z (B, h/4, w/4, N)."""
    return self.z_prior.bits(z_symbols + self.z_prior.medians)

  def hyper(self, z_symbols: jax.Array) -> jax.Array:
    """Return the hyper features (B, h, w, 2M) of symbols of z (B, h/4, w/4, N)."""
    with jax.default_matmul_precision(PRECISION):
      return self.h_s(z_symbols + self.z_prior.medians)

  def initial_state(self, hyper: jax.Array) -> State:
    """Return the state before the first pass."""
    return self.slices.initial_state(hyper)

  def anchor_prior(self, k, hyper: jax.Array, state: State) -> tuple[Prior, State]:
    """Return the prior of the anchors of slice k, and the state of this pass."""
    with jax.default_matmul_precision(PRECISION):
      return self.slices.run("anchor_prior", k, hyper, state)

  def nonanchor_prior(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> tuple[Prior, State]:
    """Return the prior of the non-anchors of slice k, given symbols (B, h, w/2, Cs) of its anchors, and the state."""
    with jax.default_matmul_precision(PRECISION):
      state = self.slices.run("set_anchors", k, hyper, state, symbols)
      return self.slices.run("nonanchor_prior", k, hyper, state)

  def finish_slice(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> State:
    """Return the state with slice k decoded, given symbols (B, h, w/2, Cs) of its non-anchors."""
    with jax.default_matmul_precision(PRECISION):
      return self.slices.run("finish_slice", k, hyper, state, symbols)

  def aux_loss(self) -> jax.Array:
    """Return the loss of the quantiles of the density of z. It has no other gradient."""
    return self.z_prior.aux_loss()

  def _transform(self, transform: nn.Module, x: jax.Array) -> jax.Array:
    with self._transform_precision():
      return transform(x.astype(self.transform_dtype)).astype(jnp.float32)

  def _transform_precision(self) -> contextlib.AbstractContextManager:
    # None leaves the caller's precision, which default_matmul_precision(None) would reset to the backend's.
    precision = self.transform_precision
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)

  def _gain(self, name: str, quality: jax.Array | float | None) -> jax.Array:
    """Return gains (B or 1, 1, 1, M). Fractions of a quality interpolate geometrically (Cui et al., CVPR 2021)."""
    if quality is None:
      raise ValueError(f"got no quality; a variable-rate codec wants one in 1..{self.config.num_rates}")
    position = jnp.clip(jnp.atleast_1d(jnp.asarray(quality, jnp.float32)) - 1, 0, self.config.num_rates - 1)
    rates = jnp.arange(self.config.num_rates)
    weights = jnp.maximum(1 - jnp.abs(position[:, None] - rates), 0)
    with jax.default_matmul_precision(PRECISION):
      return jnp.exp(weights @ getattr(self, name))[:, None, None]


def build(config: CodecConfig, **options) -> MLIC:
  """Build the linen module of a config: `variables = build(config).init(key, x)`.

  `options` are the other attributes of MLIC. ValueError in one line if the config names an unknown transform or
  context, or if one of them cannot be built from it."""
  chosen, found = transforms.find(config.transforms), [contexts.find(name) for name in config.contexts]
  found.append(distributions.find(config.distribution))
  registry.check_options(config, [chosen, *found, selection_map])
  chosen.activation_floats_per_pixel(config)
  for module in (*found, selection_map):
    getattr(module, "check", lambda _: None)(config)
  return MLIC(config, **options)


def side_multiple(config: CodecConfig) -> int:
  """Return the number that divides height and width of an image: the stride of y times 4, the stride of z in y."""
  return 4 * transforms.find(config.transforms).STRIDE


def for_gradients(model: MLIC, platform: str | None, own_programs: bool = False) -> MLIC:
  """Return the codec with the scan that is fast for gradients on a platform; None is any platform but CPU.

  A model whose scan_unroll or scan_groups are set keeps them. The scan itself chooses its groups when its program is
  lowered, but a gradient of that choice is slow to trace. Callers therefore choose between two gradients with
  jax.lax.platform_dependent. With `own_programs` the gradient is compiled by runtime/program_chain.py."""
  if not model.scan_unroll and not model.scan_groups and model.config.num_slices > 1:
    model = model.clone(scan_unroll=1, scan_groups=choose_groups(platform, model.config.num_slices),
                        own_programs=own_programs)
  if platform == "gpu" and model.scan_unroll == 1:
    return model.clone(packed=True)
  return model.clone(for_tpu=True) if platform == "tpu" else model
