"""Tests of parity with the authors' code, array by array; see tests/fixtures/golden/README.md for the recording."""

import functools
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_fill

from mlic_jax.config import CodecConfig
from mlic_jax.interop.reference_weights import from_state_dict
from mlic_jax.model.checkerboard import pack
from mlic_jax.model.mlic import CodecOutput, build
from mlic_jax.model.quantizers import NOISE, ROUNDING, Quantizer
from mlic_jax.model.slices import SliceStep
from mlic_jax.training.step import COMPILE_QUICKLY

pytestmark = pytest.mark.usefixtures("as_shipped")

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
TOLERANCE = dict(rtol=0, atol=1e-4)  # the recorded arrays themselves are good to 1.5e-5


class Case(NamedTuple):
  """One recorded case, with the network input x (B, H, W, 3)."""
  arrays: dict[str, np.ndarray]  # NHWC
  config: CodecConfig
  variables: dict
  x: np.ndarray
  weights: dict[str, np.ndarray]


@functools.cache
def load_case(name: str) -> Case:
  manifest = json.loads((GOLDEN / f"manifest_{name}.json").read_text())
  weights = golden_fill.fill(manifest)
  filled = b"".join(weights[e["name"]].astype("<f4").tobytes() for e in manifest if e["kind"] == "parameter")
  assert hashlib.sha256(filled).hexdigest() == json.loads((GOLDEN / "stats.json").read_text())[name]["fill_sha256"]
  arrays = {k: np.moveaxis(v, 1, -1) if v.ndim == 4 else v for k, v in np.load(GOLDEN / f"golden_{name}.npz").items()}
  config, variables = from_state_dict(weights)
  x = arrays["image_u8"].astype(np.float32) / 255
  x = np.pad(x, ((0, 0), (0, -x.shape[1] % 64), (0, -x.shape[2] % 64), (0, 0)))
  return Case(arrays, config, variables, x, weights)


@pytest.fixture(scope="module", params=["A", "B", "C"])
def case(request) -> Case:
  return load_case(request.param)


class Computed(NamedTuple):
  """What the codec computes of the input of a case."""
  arrays: dict[str, np.ndarray]  # by recorded name, at the positions that a pass codes
  symbols: np.ndarray            # of all slices, in the order of the release
  rows: np.ndarray               # of the CDF table, for `symbols`
  output: CodecOutput            # NumPy arrays, of the scan of training


@pytest.fixture(scope="module")
def computed(case) -> Computed:
  """What every pass of the encoder computes, and the scan of training; one program, which compiles g_a and g_s once."""
  model, step, count = build(case.config), SliceStep(case.config), case.config.num_slices

  def run_slice(hyper, state, inputs):
    k, params, y_slice = inputs
    run = lambda *args, method: step.apply({"params": params}, k, hyper, *args, method=method,
                                           capture_intermediates=True, mutable="intermediates")
    (anchors, state), seen_prior = run(state, method="anchor_prior")
    anchor_symbols = jnp.round(pack(y_slice, True) - anchors.mean)
    state, seen_lrp = run(state, anchor_symbols, method="set_anchors")
    (others, state), seen_other_prior = run(state, method="nonanchor_prior")
    other_symbols = jnp.round(pack(y_slice, False) - others.mean)
    state, seen_other_lrp = run(state, other_symbols, method="finish_slice")
    coded = [(anchor_symbols, anchors.row), (other_symbols, others.row)]
    seen = (seen_prior, seen_lrp, seen_other_prior, seen_other_lrp)
    output = lambda i, name: seen[i]["intermediates"][name]["__call__"][0]
    found = {"local_ctx": output(2, "contexts_local_attention"), "channel_ctx": output(0, "contexts_channel"),
             "global_inter_ctx": output(0, "contexts_global_inter_linear"),
             "global_intra_ctx": output(2, "contexts_global_intra_linear")}
    for i, parity in ((0, "anchor"), (2, "nonanchor")):
      found[f"{parity}_scales"], found[f"{parity}_means"] = jnp.split(output(i, f"entropy_{parity}"), 2, axis=-1)
      found[f"lrp_{parity}"] = 0.5 * jnp.tanh(output(i + 1, f"lrp_{parity}"))
    return state, (coded, found)

  @jax.jit
  def run(variables, x):
    apply = lambda *args, method: model.apply(variables, *args, method=method)
    y, z = apply(x, method="analyze")
    z_symbols = apply(z, method="round_z")
    hyper = apply(z_symbols, method="hyper")
    y_slices = jnp.moveaxis(y.reshape(*y.shape[:-1], count, -1), -2, 0)
    with jax.default_matmul_precision("highest"):
      state, (coded, found) = jax.lax.scan(
          functools.partial(run_slice, hyper), apply(hyper, method="initial_state"),
          (jnp.arange(count), variables["params"]["slices"]["steps"], y_slices))
    arrays = dict(y=y, z=z, z_symbols=z_symbols, hyper_params=hyper, y_hat=state.decoded,
                  z_hat=z_symbols + variables["params"]["z_prior"]["quantiles"][:, 1])
    return arrays, coded, found, apply(y, z, method="code")

  arrays, coded, found, output = jax.device_get(run(case.variables, case.x))
  first = {name: int(name in ("channel_ctx", "global_inter_ctx", "global_intra_ctx")) for name in found}
  arrays |= {f"s{k}_{name}": found[name][k] for name in found for k in range(first[name], count)}
  channels_first = lambda t: np.moveaxis(t, -1, 1).ravel()  # the order of the release within a pass
  symbols, rows = (np.concatenate([channels_first(of_pass[i][k]) for k in range(count) for of_pass in coded])
                   for i in range(2))
  return Computed(arrays, symbols, rows, output)


def test_every_recorded_array_of_every_pass_is_reproduced(case, computed):
  compared = 0
  for name, wanted in case.arrays.items():
    if name not in computed.arrays or name == "z_symbols":
      continue
    got = computed.arrays[name]
    if got.shape != wanted.shape:  # computed here only where the pass codes: on one parity
      wanted = pack(wanted, anchors="_anchor" in name)
    np.testing.assert_allclose(got, wanted, err_msg=name, **TOLERANCE)
    compared += 1
  per_slice, contexts_of_later_slices = 7, 3
  assert compared == 5 + case.config.num_slices * (per_slice + contexts_of_later_slices) - contexts_of_later_slices


def test_symbols_are_equal_and_so_are_their_table_rows(case, computed):
  np.testing.assert_array_equal(computed.arrays["z_symbols"], case.arrays["z_symbols"])
  np.testing.assert_array_equal(computed.symbols, case.arrays["symbols"])
  assert np.count_nonzero(computed.rows != case.arrays["indexes"]) <= len(computed.rows) // 10_000


def test_the_scan_gives_the_recorded_reconstruction_and_bits(case, computed):
  out = computed.output
  np.testing.assert_allclose(out.y_hat, case.arrays["y_hat"], **TOLERANCE)
  np.testing.assert_allclose(out.x_hat, case.arrays["x_hat"], **TOLERANCE)
  np.testing.assert_allclose(2.0**-out.y_bits, case.arrays["y_likelihoods"], **TOLERANCE)
  np.testing.assert_allclose(2.0**-out.z_bits, case.arrays["z_likelihoods"], **TOLERANCE)
  for name in ("y_bits", "z_bits"):
    total = getattr(out, name).sum(axis=(1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(total, case.arrays[name], rtol=1e-5)


@pytest.fixture(scope="module")
def gradient_norms_of_A():
  """{name of a parameter of the release: norm of its gradient}, as a function of whether latents stay as they are.

  Both are one program, with a rolled scan, which compiles sooner."""
  case = load_case("A")
  model = build(case.config, scan_unroll=1)

  @functools.partial(jax.jit, compiler_options=COMPILE_QUICKLY)
  @jax.grad
  def gradient(variables, is_silent):
    silent = lambda residual: NOISE.quantize(residual, 0.0)
    quantize = lambda residual, _: jax.tree.map(
        functools.partial(jnp.where, is_silent), silent(residual), ROUNDING.quantize(residual, None))
    out = model.apply(variables, case.x, quantizer=Quantizer(quantize))
    bpp = (out.y_bits.sum() + out.z_bits.sum()) / np.prod(case.x.shape[:3])
    return 0.013 * 255**2 * jnp.mean((out.x_hat - case.x)**2) + bpp

  # Every array of the release is filled with a number of its own, to find it again among the stacked parameters.
  names = list(case.weights)
  numbered = {name: np.full_like(case.weights[name], i + 1) for i, name in enumerate(names)}
  owners = jax.tree.leaves(from_state_dict(numbered)[1])

  def norms(is_silent):
    grads = jax.tree.leaves(gradient(case.variables, is_silent))
    squares = sum(np.bincount(np.asarray(o, int).ravel(), np.asarray(g, np.float64).ravel()**2, len(names) + 1)
                  for o, g in zip(owners, grads))
    return dict(zip(names, np.sqrt(squares[1:])))

  return norms


@pytest.mark.parametrize("recorded", ["grad_norms_A", "grad_norms_A_zero_noise"])
def test_gradient_norms_are_those_of_the_authors_code(gradient_norms_of_A, recorded):
  wanted = json.loads((GOLDEN / f"{recorded}.json").read_text())
  for name, norm in gradient_norms_of_A(recorded.endswith("zero_noise")).items():
    # A constant added to a key channel cancels in its softmax: what is recorded there is rounding residue.
    residue = "global_" in name and name.endswith("keys.1.bias")
    np.testing.assert_allclose(norm, wanted[name], rtol=1e-3, atol=1e-6 if residue else 1e-9, err_msg=name)
