"""The codec as one linen module. Read this first.

    x --g_a--> y --h_a--> z --round--> z_hat --h_s--> hyper --.
               |                                              v
               '----------------------------> slices: prior, round, y_hat --g_s--> x_hat

`MLIC.__call__` is training and the bit estimate; `MLIC.code` is the same from given latents. The methods below them are
that computation in pieces, for the encoder and the decoder (coding/codec.py).
"""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts, registry, selection_map, transforms
from mlic_jax.model.hyper import HyperAnalysis, HyperSynthesis
from mlic_jax.model.likelihoods import FactorizedPrior
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slices import Prior, Slices, State

# Coding and evaluation multiply in full float32. TPUs and recent GPUs would otherwise multiply in bfloat16 or TF32: a
# prior that differs in the last bits picks another coding table, and pixels differ by up to three levels.
PRECISION = "highest"


class CodecOutput(NamedTuple):
  """What the codec makes of a batch of pictures; h = H/stride, w = W/stride, where most transforms have stride 16."""
  x_hat: jax.Array   # (B, H, W, 3), not clipped
  y_hat: jax.Array   # (B, h, w, M), input of g_s before the inverse gain
  y_bits: jax.Array  # (B, h, w, M), per element
  z_bits: jax.Array  # (B, h/4, w/4, N), per element
  map_loss: jax.Array | None = None  # (B,) nats an element, what a map of coded elements learns by (selection.py)


class MLIC(nn.Module):
  """A learned image codec of the MLIC family (Jiang et al., ACM MM 2023; MLIC++, 2023).

  Pictures are (B, H, W, 3) in [0, 1], H and W multiples of `side_multiple(config)`, mostly 64. `quality` is for
  variable-rate codecs only (config.num_rates > 0): a scalar or (B,) in 1..num_rates, where fractions interpolate
  between two learned rates.

  The defaults are those of coding and evaluation. Training on accelerators chooses others:
  * `transform_dtype`: dtype of g_a and g_s, bfloat16 for example. y, x_hat and the entropy path stay float32.
  * `remat`: the gradient recomputes blocks and slices instead of storing their activations.
  * `transform_precision`: precision of products in g_a, g_s and h_a, a value of jax.default_matmul_precision. None is
    the precision of the caller, which is bfloat16 on TPUs and TF32 on recent GPUs unless JAX is configured otherwise.
  * `entropy_precision`: precision of products in `code`, a value of jax.default_matmul_precision.
  `scan_unroll` is the number of slices per iteration of the compiled loop over slices; 0 means all of them for
  gradients on CPU, where the gradient of a rolled loop is slow, and 1 otherwise. It changes no result but for rounding.
  """
  config: CodecConfig
  transform_dtype: jax.typing.DTypeLike = jnp.float32
  remat: bool = False
  transform_precision: str | None = PRECISION
  entropy_precision: str = PRECISION
  scan_unroll: int = 0

  def setup(self):
    config = self.config
    chosen = transforms.find(config.transforms)
    self.g_a, self.g_s = chosen.Analysis(config, self.remat), chosen.Synthesis(config, self.remat)
    self.h_a, self.h_s = HyperAnalysis(config), HyperSynthesis(config)
    self.z_prior = FactorizedPrior(config.N)
    self.slices = Slices(config, self.scan_unroll)
    if config.num_rates:
      # A spread of one octave around the middle to start from; the rates themselves are learned.
      spread = lambda _: jnp.tile(jnp.linspace(-0.8, 0.8, config.num_rates)[:, None], (1, config.M))
      self.log_gain = self.param("log_gain", spread)
      self.log_inverse_gain = self.param("log_inverse_gain", lambda key: -spread(key))

  def __call__(self, x: jax.Array, quality: jax.Array | float | None = None, num_arrived: jax.Array | None = None,
               first: jax.Array | int = 0, quantizer: Quantizer | None = None) -> CodecOutput:
    """Reconstruction and bits of pictures x. The other arguments are those of `code`."""
    return self.code(*self.analyze(x, quality), quality, num_arrived, first, quantizer)

  def code(self, y: jax.Array, z: jax.Array, quality: jax.Array | float | None = None,
           num_arrived: jax.Array | None = None, first: jax.Array | int = 0,
           quantizer: Quantizer | None = None) -> CodecOutput:
    """Reconstruction and bits of given latents y (B, h, w, M), which has the gain of its rate, and z (B, h/4, w/4, N).

    num_arrived (B,): only so many slices reach the decoder; the others are their means, and cost nothing. None: all.
    first: index of x[0] in a larger batch; what is drawn for a picture does not depend on how that was split.
    quantizer: what stands for rounding. None: with a "noise" rng NOISE, the rate of training; otherwise ROUNDING. One
      that draws takes its random numbers from that rng."""
    quantizer = quantizer or (NOISE if self.has_rng("noise") else ROUNDING)
    draws = lambda latent: quantizer.draws(self.make_rng("noise") if quantizer.draw else None, latent.shape, first)
    with jax.default_matmul_precision(self.entropy_precision):
      medians, y_draws, z_draws = self.z_prior.medians, draws(y), draws(z)
      # Twice, as noise has no gradient for the medians, to the bit: what is received and what is counted each cancel.
      received, _ = quantizer.quantize(z - medians, z_draws)
      residual = z - medians
      _, counted = quantizer.quantize(residual, z_draws)
      z_bits = self.z_prior.bits(z + (counted - residual))
      coded = self.slices.walk(self.h_s(received + medians), y, quantizer, y_draws, num_arrived, self.remat)
    map_loss = None
    if coded.keep is not None:
      map_loss = selection_map.cross_entropy(self.config, y - coded.mean, coded.keep).mean((1, 2, 3))
    return CodecOutput(self.synthesize(coded.y_hat, quality), coded.y_hat, coded.bits, z_bits, map_loss)

  def analyze(self, x: jax.Array, quality: jax.Array | float | None = None) -> tuple[jax.Array, jax.Array]:
    """y (B, h, w, M), times the gain of its rate, and z (B, h/4, w/4, N)."""
    multiple = side_multiple(self.config)
    if any(side % multiple for side in x.shape[1:3]):
      raise ValueError(f"pictures of {x.shape[1]}x{x.shape[2]}, height and width have to be multiples of {multiple}")
    y = self._transform(self.g_a, x)
    if self.config.num_rates:
      y = y * self._gain("log_gain", quality)
    with self._transform_precision():
      return y, self.h_a(y)

  def synthesize(self, y_hat: jax.Array, quality: jax.Array | float | None = None) -> jax.Array:
    """x_hat (B, H, W, 3), not clipped, from y_hat (B, h, w, M)."""
    if self.config.num_rates:
      y_hat = y_hat * self._gain("log_inverse_gain", quality)
    return self._transform(self.g_s, y_hat)

  def round_z(self, z: jax.Array) -> jax.Array:
    """int32 symbols of z (B, h/4, w/4, N)."""
    return jnp.round(z - self.z_prior.medians).astype(jnp.int32)

  def z_bits(self, z_symbols: jax.Array) -> jax.Array:
    """Bits per element of the symbols of z (B, h/4, w/4, N)."""
    return self.z_prior.bits(z_symbols + self.z_prior.medians)

  def hyper(self, z_symbols: jax.Array) -> jax.Array:
    """hyper (B, h, w, 2M), from the symbols of z."""
    with jax.default_matmul_precision(PRECISION):
      return self.h_s(z_symbols + self.z_prior.medians)

  def initial_state(self, hyper: jax.Array) -> State:
    """The state before the first pass."""
    return self.slices.initial_state(hyper)

  def anchor_prior(self, k, hyper: jax.Array, state: State) -> tuple[Prior, State]:
    """The prior of the anchors of slice k."""
    with jax.default_matmul_precision(PRECISION):
      return self.slices.run("anchor_prior", k, hyper, state)

  def nonanchor_prior(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> tuple[Prior, State]:
    """The prior of the non-anchors of slice k, from the symbols (B, h, w/2, Cs) of its anchors."""
    with jax.default_matmul_precision(PRECISION):
      state = self.slices.run("set_anchors", k, hyper, state, symbols)
      return self.slices.run("nonanchor_prior", k, hyper, state)

  def finish_slice(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> State:
    """The state with slice k decoded, from the symbols (B, h, w/2, Cs) of its non-anchors."""
    with jax.default_matmul_precision(PRECISION):
      return self.slices.run("finish_slice", k, hyper, state, symbols)

  def aux_loss(self) -> jax.Array:
    """Trains the quantiles of z's density, and nothing else."""
    return self.z_prior.aux_loss()

  def _transform(self, transform: nn.Module, x: jax.Array) -> jax.Array:
    with self._transform_precision():
      return transform(x.astype(self.transform_dtype)).astype(jnp.float32)

  def _transform_precision(self) -> contextlib.AbstractContextManager:
    # None leaves the caller's precision, which default_matmul_precision(None) would reset to the backend's.
    precision = self.transform_precision
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)

  def _gain(self, name: str, quality: jax.Array | float | None) -> jax.Array:
    """(B or 1, 1, 1, M); fractions of a quality interpolate geometrically (Cui et al., CVPR 2021)."""
    if quality is None:
      raise ValueError(f"a variable-rate codec wants a quality in 1..{self.config.num_rates}, none came")
    place = jnp.clip(jnp.atleast_1d(jnp.asarray(quality, jnp.float32)) - 1, 0, self.config.num_rates - 1)
    rates = jnp.arange(self.config.num_rates)
    weights = jnp.maximum(1 - jnp.abs(place[:, None] - rates), 0)
    with jax.default_matmul_precision(PRECISION):
      return jnp.exp(weights @ getattr(self, name))[:, None, None]


def build(config: CodecConfig, **options) -> MLIC:
  """The linen module of a config: `variables = build(config).init(key, x)`. Options are those of training.

  ValueError, in one line, when a part that the config names is not there, or cannot be built of it."""
  chosen, found = transforms.find(config.transforms), [contexts.find(name) for name in config.contexts]
  registry.check_options(config, [chosen, *found, selection_map])
  chosen.activation_floats_per_pixel(config)
  for module in (*found, selection_map):
    getattr(module, "check", lambda _: None)(config)
  return MLIC(config, **options)


def side_multiple(config: CodecConfig) -> int:
  """What height and width of a picture have to be multiples of: the stride of y, times that of z, 4."""
  return 4 * transforms.find(config.transforms).STRIDE


def unrolled_and_rolled(model: MLIC) -> tuple[MLIC, MLIC]:
  """Returns the codec with an unrolled scan, for gradients on CPU, and with a rolled one, for gradients elsewhere; both
  are `model` if its scan_unroll is not 0.

  The scan itself makes this choice when its program is lowered. A gradient of the choice is slow to trace; callers that
  take many gradients choose between two of them instead, by jax.lax.platform_dependent."""
  if model.scan_unroll or model.config.num_slices == 1:
    return model, model
  return model.clone(scan_unroll=model.config.num_slices), model.clone(scan_unroll=1)
