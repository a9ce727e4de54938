"""The slice step. Training scans over the slices; the encoder and the decoder call the passes one by one.

    step k:  anchor prior (mean, scale)     <- hyper, slices 0..k-1
             y_hat on anchors               <- symbols + mean, plus residual prediction (LRP)
             non-anchor prior (mean, scale) <- the same, and the anchors of this slice
             y_hat of the slice             <- symbols + mean, plus LRP

Every step has the full width of y as input, and `decoded` is zero where nothing is decoded yet. The parameters of all
steps therefore have the same shapes and are stacked on a leading axis, and k may be traced.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts, distributions, selection_map
from mlic_jax.model.checkerboard import anchor_mask, pack, pack_parities, unpack, unpack_parities
from mlic_jax.model.layers import ConvStack
from mlic_jax.model.likelihoods import scale_index, scale_level
from mlic_jax.model.packed_hyper import full, means_of, parity_of
from mlic_jax.model.quantizers import ROUNDING, Quantizer
from mlic_jax.model.slice_groups import GroupedScan, choose_groups

# Matmul precision of the layers that return means, scales and residual predictions, in every training.
OUTPUT_PRECISION = "highest"


class Prior(NamedTuple):
  """Prior of the elements that a pass codes, packed (B, h, w/2, Cs)."""
  mean: jax.Array
  scale: jax.Array         # at least SCALE_MIN
  keep: jax.Array | None = None   # selection map, above 0 where an element is coded; None: all are coded
  parameters: tuple[jax.Array, ...] = ()   # further parameters of the distribution of y, such as its shape

  @property
  def row(self) -> jax.Array:
    """int32 CDF row of each element, among those of its shape."""
    return scale_index(self.scale)

  @property
  def level(self) -> jax.Array:
    """float32 coordinate of each scale on the levels of the table, 0 at SCALE_MIN; portable files take rows from it."""
    return scale_level(self.scale)


class State(NamedTuple):
  """State of the decoder between two passes."""
  decoded: jax.Array                # (B, h, w, M) y_hat of the decoded slices, zeros in the others
  mean: jax.Array                   # (B, h, w/2, Cs) mean of the pass whose symbols are next
  anchor: jax.Array                 # (B, h, w, Cs) y_hat of slice k on its anchors; zeros before they are decoded
  shared: tuple[jax.Array, ...]     # features for both passes of slice k, each (B, h, w, features)


class SlicesOutput(NamedTuple):
  """Result of the scan over the slices for each element of y, (B, h, w, M) each."""
  y_hat: jax.Array
  bits: jax.Array
  mean: jax.Array
  scale: jax.Array         # at least SCALE_MIN
  keep: jax.Array | None   # as in Prior
  parameters: tuple[jax.Array, ...] = ()   # as in Prior


class ChannelParameters(nn.Module):
  """Parameters that each channel of a slice learns by itself, {name: (channels,)}; `start` has their first values."""
  start: Mapping[str, float]
  channels: int

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    return {name: self.param(name, nn.initializers.constant(value), (self.channels,))
            for name, value in self.start.items()}


class SliceStep(nn.Module):
  """Step of one slice, with the parameters of this slice. `Slices` stacks the parameters of all slices.

  `for_tpu` is as in MLIC. `group` has the slices of the loop that runs this step with a traced k. Channels that none of
  them reads are not multiplied. None means that it may be any slice, or that k is known while tracing."""
  config: CodecConfig
  for_tpu: bool = False
  group: range | None = None

  def setup(self):
    config = self.config
    self.contexts = {name: contexts.make_context(name, config) for name in config.contexts}
    self.distribution = distributions.make_distribution(config)
    if self.distribution.channel_parameters:
      self.distribution_parameters = ChannelParameters(self.distribution.channel_parameters, config.slice_channels)
    out = (*config.entropy_widths, self.distribution.outputs * config.slice_channels)
    self.entropy_anchor = ConvStack(out, kernel_size=1, last_precision=OUTPUT_PRECISION)
    self.entropy_nonanchor = ConvStack(out, kernel_size=1, last_precision=OUTPUT_PRECISION)
    if config.lrp_widths:
      widths = (*config.lrp_widths, config.slice_channels)
      self.lrp_anchor = ConvStack(widths, last_precision=OUTPUT_PRECISION)
      self.lrp_nonanchor = ConvStack(widths, last_precision=OUTPUT_PRECISION)
    if selection_map.has_map(config):
      if selection_map.options(config)["selection_spatial"]:
        self.map_both = selection_map.SpatialSelectionMap(config)
      else:
        self.map_anchor, self.map_nonanchor = selection_map.SelectionMap(config), selection_map.SelectionMap(config)

  def __call__(self, k, hyper, decoded, y_slice, quantizer: Quantizer = ROUNDING, draws=None, arrived=None):
    """Run both passes of slice k, for training and the bit estimate.

    Args:
      k: index of the slice.
      hyper: (B, h, w, 2M) from h_s.
      decoded: (B, h, w, M) y_hat of slices 0..k-1.
      y_slice: (B, h, w, Cs) slice k of y.
      quantizer: stands for rounding.
      draws: its random numbers for slice k, arrays (B, h, w, Cs), or None.
      arrived: (B,) bool, whether the slice reaches the decoder. A missing slice is its mean and costs no bits, as in
        progressive decoding. None means that all arrive.

    Returns:
      `decoded` with slice k filled in, and a pair of (B, h, w, Cs) each: the residuals whose bits are counted, and the
      Prior.
    """
    packed = pack_parities(y_slice), quantizer, pack_parities(draws)
    decoded, found = self.passes(k, hyper, decoded, *packed, arrived)
    return decoded, unpack_parities(found)

  def passes(self, k, hyper, decoded, y_slice, quantizer: Quantizer, draws, arrived=None):
    """Run both passes of slice k as `__call__` does, with packed arrays.

    `y_slice` and `draws` are pairs for anchors and non-anchors, packed (B, h, w/2, Cs), and so is the second result.
    `hyper` may be a PackedHyper."""
    state, found = self.empty_state(decoded), []
    prior_of, finish = (self.anchor_prior, self.nonanchor_prior), (self.set_anchors, self.finish_slice)
    for of_pass, of_next, y_pass, draws_pass in zip(prior_of, finish, y_slice, draws):
      prior, state = of_pass(k, hyper, state)
      symbols, counted = quantizer.quantize(y_pass - prior.mean, draws_pass)
      if prior.keep is not None:
        symbols = jnp.where(prior.keep > 0, symbols, selection_map.skipped_symbol(self.config))
      if arrived is not None:
        symbols = jnp.where(arrived[:, None, None, None], symbols, 0.0)
      found.append((counted, prior))
      state = of_next(k, hyper, state, symbols)
    return state.decoded, tuple(found)

  def empty_state(self, decoded: jax.Array) -> State:
    """Return the state before the first pass of a slice."""
    b, h, w, _ = decoded.shape
    cs = self.config.slice_channels
    shared = tuple(jnp.zeros((b, h, w, c.features)) for c in self._shared_contexts())
    return State(decoded, jnp.zeros((b, h, w // 2, cs)), jnp.zeros((b, h, w, cs)), shared)

  def anchor_prior(self, k, hyper: jax.Array, state: State) -> tuple[Prior, State]:
    """Return the prior of the anchors of slice k, given slices 0..k-1, and the state of this pass."""
    inputs = self._context_inputs(k, hyper, state)
    active = [c for c in self.contexts.values() if "anchor" not in c.needs]
    computed = [self._context_features(c, inputs) for c in active]
    features = [*(pack(f, anchors=True) for f in computed), parity_of(hyper, anchors=True)]
    shared = tuple(f for c, f in zip(active, computed) if not contexts.is_anchors_only(c))
    state = state._replace(shared=shared, anchor=jnp.zeros_like(state.anchor))
    prior = self._prior("anchor", k, features, active, hyper, state)
    return prior, state._replace(mean=prior.mean)

  def set_anchors(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> State:
    """Return the state with y_hat on the anchors of slice k, given their symbols (B, h, w/2, Cs).

    Symbols of skipped elements are SKIPPED_SYMBOL in models without selection_lrp."""
    symbols, coded = selection_map.coded_symbols(self.config, symbols)
    anchor = unpack(symbols + state.mean, anchors=True)
    return state._replace(anchor=self._with_lrp("lrp_anchor", k, hyper, state.decoded, anchor, coded, anchors=True))

  def nonanchor_prior(self, k, hyper: jax.Array, state: State) -> tuple[Prior, State]:
    """Return the prior of the non-anchors of slice k, given slices 0..k-1 and the anchors of slice k, and the state."""
    inputs = self._context_inputs(k, hyper, state)._replace(anchor=state.anchor)
    active = [c for c in self.contexts.values() if "anchor" in c.needs]
    features = [self._context_features(c, inputs) for c in active]
    features += [*(pack(f, anchors=False) for f in state.shared), parity_of(hyper, anchors=False)]
    prior = self._prior("nonanchor", k, features, active + self._shared_contexts(), hyper, state)
    return prior, state._replace(mean=prior.mean)

  def finish_slice(self, k, hyper: jax.Array, state: State, symbols: jax.Array) -> State:
    """Return the state with slice k decoded, given the symbols of its non-anchors (B, h, w/2, Cs); see set_anchors."""
    symbols, coded = selection_map.coded_symbols(self.config, symbols)
    current = state.anchor + unpack(symbols + state.mean, anchors=False)
    current = self._with_lrp("lrp_nonanchor", k, hyper, state.decoded, current, coded, anchors=False)
    return state._replace(decoded=self._with_slice(state.decoded, k, current))

  def _shared_contexts(self) -> list[nn.Module]:
    """Return the contexts whose features are computed in the anchor pass and used in both passes."""
    return [c for c in self.contexts.values() if "anchor" not in c.needs and not contexts.is_anchors_only(c)]

  def _context_inputs(self, k, hyper, state: State) -> contexts.ContextInputs:
    cs = self.config.slice_channels
    previous = jax.lax.dynamic_slice_in_dim(state.decoded, jnp.maximum(k - 1, 0) * cs, cs, axis=-1)
    return contexts.ContextInputs(k, full(hyper), state.decoded, self._is_decoded(k), previous, anchor=None,
                                  for_tpu=self.for_tpu, group=self.group)

  def _is_decoded(self, k) -> jax.Array | np.ndarray:
    """Return (M,) bool, True on the channels of slices 0..k-1; a NumPy array if k is an int."""
    return (np if isinstance(k, int) else jnp).arange(self.config.M) < k * self.config.slice_channels

  def _last(self, k) -> jax.Array | int:
    """Return the last slice of the group of slice k."""
    return self.group[-1] if self.group else k

  def _is_active(self, context: nn.Module, k) -> jax.Array | bool:
    """Return whether a context is active in slice k. It is in all slices but the first one, or in none of them."""
    return contexts.is_active(context, self.group[0] if self.group and self.group[0] else k)

  def _context_features(self, context: nn.Module, inputs: contexts.ContextInputs) -> jax.Array:
    """Return the features of a context; zeros for slices in which the context is inactive."""
    is_active, (b, h, w, _) = self._is_active(context, inputs.k), inputs.hyper.shape
    if is_active is False and not self.is_initializing():  # known while tracing
      return jnp.zeros((b, h, w // 2 if "anchor" in context.needs else w, context.features))
    return context(inputs) if is_active is True else jnp.where(is_active, context(inputs), 0.0)

  def _prior(self, of_pass: str, k, features: list[jax.Array], active: list[nn.Module], hyper, state) -> Prior:
    is_live = lambda chosen: [jnp.broadcast_to(self._is_active(c, k), (c.features,)) for c in chosen]
    all_live = jnp.ones(2 * self.config.M, bool)
    live = jnp.concatenate([*is_live(active), all_live])
    out = getattr(self, f"entropy_{of_pass}")(jnp.concatenate(features, axis=-1), live)
    raw = jnp.split(out, self.distribution.outputs, axis=-1)
    learned = self.distribution_parameters() if self.distribution.channel_parameters else {}
    (mean, scale, parameters), raw_scale, keep = self.distribution.predict(raw, learned), raw[0], None
    if selection_map.options(self.config)["selection_spatial"]:
      live = jnp.concatenate([all_live, self._is_decoded(self._last(k)), *is_live(self._shared_contexts())])
      keep = self.map_both([full(hyper), state.decoded, *state.shared], mean, raw_scale, of_pass == "anchor", live)
    elif selection_map.has_map(self.config):
      keep = getattr(self, f"map_{of_pass}")(features, mean, scale, live)
    return Prior(mean, scale, keep, parameters)

  def _with_slice(self, decoded: jax.Array, k, current: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(decoded, current, k * self.config.slice_channels, axis=-1)

  def _with_lrp(self, name: str, k, hyper, decoded, current, coded, anchors: bool) -> jax.Array:
    """Add the predicted rounding error to `current` (B, h, w, Cs) at one parity (Minnen & Singh, ICIP 2020).

    `coded` (B, h, w/2, Cs) bool marks the elements that get it; None means all."""
    if not self.config.lrp_widths:
      return current
    is_decoded = self._is_decoded(self._last(k) + 1)
    xp = np if isinstance(is_decoded, np.ndarray) else jnp
    live = xp.concatenate([xp.ones(self.config.M, bool), is_decoded])
    inputs = jnp.concatenate([means_of(hyper), self._with_slice(decoded, k, current)], axis=-1)
    residual = 0.5 * jnp.tanh(getattr(self, name)(inputs, live))
    if coded is not None:
      return current + residual * unpack(coded, anchors)
    return current + residual * (anchor_mask(*current.shape[1:3])[..., None] == anchors)


class Slices(nn.Module):
  """Steps of all slices: their stacked parameters, the scan of training, and single passes for the codec.

  `scan_unroll`, `scan_groups`, `packed`, `for_tpu` and `own_programs` are as in MLIC."""
  config: CodecConfig
  scan_unroll: int = 0
  scan_groups: tuple[int, ...] = ()
  packed: bool = False
  for_tpu: bool = False
  own_programs: bool = False

  def setup(self):
    self.step = SliceStep(self.config, self.for_tpu, parent=None)
    if self.is_initializing():
      M, cs, count = self.config.M, self.config.slice_channels, self.config.num_slices
      start = lambda key, k: self.step.init(
          key, k, jnp.zeros((1, 4, 4, 2 * M)), jnp.zeros((1, 4, 4, M)), jnp.zeros((1, 4, 4, cs)))["params"]
      keys = jax.random.split(self.make_rng("params"), count)
      # Compiled, so that XLA removes all computations of `start` but the parameters.
      self.put_variable("params", "steps", jax.jit(jax.vmap(start))(keys, jnp.arange(count)))

  def scan(self, hyper: jax.Array, y: jax.Array, quantizer: Quantizer = ROUNDING, draws: Any = None,
           num_arrived: jax.Array | None = None, remat: bool = False) -> SlicesOutput:
    """Scan over the slices.

    Args:
      hyper: (B, h, w, 2M) from h_s.
      y: (B, h, w, M).
      quantizer: stands for rounding.
      draws: its random numbers, arrays of the shape of y, or None.
      num_arrived: (B,) number of slices that reach the decoder, see SliceStep. None means all.
      remat: rematerialize every step in the gradient.
    """
    count = self.config.num_slices
    split = lambda t: jnp.moveaxis(t.reshape(*t.shape[:-1], count, -1), -2, 0)
    arrived = None if num_arrived is None else jnp.arange(count)[:, None] < num_arrived  # (slices, B)
    steps: Any = self.get_variable("params", "steps")
    inputs = steps, jnp.arange(count), split(y), jax.tree.map(split, draws), arrived
    in_groups = GroupedScan(self.step, hyper, quantizer, remat, self.scan_unroll or 1, self.packed, self.for_tpu,
                            self.own_programs)
    sizes = self.scan_groups or ((1,) * count if self.scan_unroll >= count else (count,))
    scan = partial(in_groups, sizes)
    if not self.scan_unroll and not self.scan_groups and count > 1 and quantizer is not ROUNDING:
      # On CPU a single loop multiplies channels that are not decoded yet. Nothing differentiates plain rounding.
      on_cpu = partial(in_groups, choose_groups("cpu", count))
      scan = partial(jax.lax.platform_dependent, cpu=on_cpu, default=scan)
    y_hat, (counted, prior) = scan(jnp.zeros_like(y), inputs)
    distribution = distributions.make_distribution(self.config)
    bits = distribution.bits(counted, prior.scale, *prior.parameters)  # of all slices in one call, which compiles once
    if prior.keep is not None:
      bits = jnp.where(prior.keep > 0, bits, 0.0)
    if arrived is not None:
      bits = jnp.where(arrived[:, :, None, None, None], bits, 0.0)
    return SlicesOutput(y_hat, *jax.tree.map(lambda t: jnp.moveaxis(t, 0, -2).reshape(y.shape), (bits, *prior)))

  def run(self, method: str, k, *args):
    """Run one pass of step k, given the name of its method in SliceStep. k may be traced."""
    params = jax.tree.map(lambda p: p[k], self.get_variable("params", "steps"))
    return self.step.apply({"params": params}, k, *args, method=method)

  def initial_state(self, hyper: jax.Array) -> State:
    """Return the state before the first pass of the first slice."""
    decoded = jnp.zeros((*hyper.shape[:-1], self.config.M))
    state: Any = self.step.apply({}, decoded, method="empty_state")
    return state
