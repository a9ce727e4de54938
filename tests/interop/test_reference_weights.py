"""Tests of state dicts of the authors' release and of CompressAI: reading, writing and refusals."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers import compressai_fill, golden_fill

from mlic_jax.config import CodecConfig
from mlic_jax.interop import variants
from mlic_jax.interop.reference_weights import WeightsError, from_state_dict, infer_config, to_state_dict
from mlic_jax.interop.state_dict_names import common_name, compressai_name
from mlic_jax.model.mlic import build

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
LAYOUTS = compressai_fill.layouts()
# Of the three models that all implementations have: the name of its layout, and what has to be said to read it.
MODELS = {"mlic": None, "mlicplus": "mlic_plus", "mlicpp": None}


@pytest.fixture(scope="module")
def weights():
  return golden_fill.fill(json.loads((GOLDEN / "manifest_A.json").read_text()))


@pytest.fixture(scope="module")
def converted(weights):
  return from_state_dict(weights)


def assert_same(a, b):
  assert a[0] == b[0]
  jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


def assert_equal_arrays(written: dict[str, np.ndarray], wanted: dict[str, np.ndarray]):
  """`written` has all arrays of `wanted`, bit for bit, and buffers beside them."""
  assert wanted.keys() <= written.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(written[name].view(np.uint32), array.view(np.uint32), err_msg=name)


# --- both ways ----------------------------------------------------------------------------

@pytest.mark.parametrize("case", ["A", "B", "C"])  # C is the release of September 2023
def test_what_the_authors_released_is_written_back_bit_for_bit_with_its_buffers(case):
  manifest = json.loads((GOLDEN / f"manifest_{case}.json").read_text())
  weights = golden_fill.fill(manifest)
  written = to_state_dict(*from_state_dict(weights), "authors")
  assert {name: (list(a.shape), str(a.dtype)) for name, a in written.items()} == {
      each["name"]: (each["shape"], each["dtype"]) for each in manifest}
  assert_equal_arrays(written, weights)


def round_trip(model: str, size: str):
  """From the authors' layout to ours, to CompressAI's, to ours and back to the authors', all bit for bit."""
  variant = MODELS[model]
  entries = LAYOUTS[model][size]["state_dict"]
  theirs = compressai_fill.fill(entries)
  authors = {common: theirs[name] for name, _, _, kind, common in entries if kind == "parameter"}
  ours = from_state_dict(authors, variant)
  compressai = to_state_dict(*ours, "compressai")
  assert set(compressai) == {name for name, *_ in entries}
  assert_equal_arrays(compressai, theirs)
  again = from_state_dict(compressai, variant)
  assert_same(again, ours)
  del ours
  assert_equal_arrays(to_state_dict(*again, "authors"), authors)


@pytest.mark.parametrize("model", MODELS)
def test_a_round_trip_through_both_layouts_changes_no_bit(model):
  round_trip(model, "small")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_round_trip_through_both_layouts_changes_no_bit_at_the_size_of_the_papers(model):
  round_trip(model, "paper")


@pytest.mark.parametrize("model", LAYOUTS)
def test_the_names_of_compressai_and_those_in_common_translate_into_each_other(model):
  for name, _, _, _, common in LAYOUTS[model]["small"]["state_dict"]:
    assert (common_name(name), compressai_name(common)) == (common, name)


V2_OPTIONS = variants.V2_OPTIONS | dict(selection_widths=(16,), token_blocks=2)
SMALL = dict(N=8, M=64, num_slices=2)
TRAINED = [CodecConfig(**SMALL), CodecConfig(contexts=variants.CONTEXTS["mlic"],
                                             options=dict(plain_convolutions=True), **SMALL),
           CodecConfig(contexts=variants.CONTEXTS["mlic_v2"], transforms="token_mixing", options=V2_OPTIONS, **SMALL)]


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: variants.variant_of(config, "compressai"))
def test_a_model_of_this_package_computes_the_same_after_the_way_there_and_back(config):
  """Its parameters are random also where they belong to slices that are not decoded, which no state dict has."""
  variables, rng = random_variables(config), np.random.default_rng(1)
  again, returned = from_state_dict(to_state_dict(config, variables, "compressai"))
  before, after = dict(variables["params"]), dict(returned["params"])
  steps = [dict(slices=params.pop("slices")) for params in (before, after)]
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, steps)))
  hyper, y = (rng.normal(size=(1, 4, 8, n)).astype(np.float32) for n in (2 * config.M, config.M))
  coded = [scan_of(each)(params, hyper, y) for each, params in zip((config, again), steps)]
  for name in "y_hat", "bits", "mean", "scale":
    of_both = [getattr(each, name) for each in coded]
    np.testing.assert_allclose(*of_both, rtol=0, atol=1e-5, err_msg=name)


@functools.cache
def scan_of(config: CodecConfig):
  """The scan over the slices, compiled: a function (params, hyper, y)."""
  return jax.jit(lambda params, hyper, y: build(config).apply(
      {"params": params}, hyper, y, method=lambda codec, hyper, y: codec.slices.scan(hyper, y)))


def test_contexts_in_another_order_are_written_in_the_order_of_the_other_implementation(converted):
  """A model of this package may have its contexts in any order; the networks then read them in that order."""
  config, variables = converted
  names, widths = config.contexts, [64, 64, 64, 128]  # local, intra, inter, channel
  steps = dict(variables["params"]["slices"]["steps"])
  starts = np.cumsum([0, *widths])
  place = {name: np.arange(starts[i], starts[i + 1]) for i, name in enumerate(names)}
  order = ("channel", "global_intra_linear", "global_inter_linear", "local_attention")
  of_pass = {"entropy_anchor": ("channel", "global_inter_linear"),
             "entropy_nonanchor": ("global_intra_linear", "local_attention", "channel", "global_inter_linear")}
  for part, spoken in of_pass.items():
    first = place["global_inter_linear"][0] if part == "entropy_anchor" else 0
    inputs = np.concatenate([*(place[name] - first for name in spoken), np.arange(320 - first, 320 - first + 192)])
    conv = steps[part]["conv0"]
    steps[part] = {**steps[part], "conv0": {**conv, "kernel": conv["kernel"][:, :, :, inputs]}}
  reordered = CodecConfig.from_dict({**config.to_dict(), "contexts": order})
  other = {"params": {**variables["params"], "slices": {"steps": steps}}}
  for layout in "authors", "compressai":
    assert_equal_arrays(to_state_dict(reordered, other, layout), to_state_dict(config, variables, layout))


# --- what is read -------------------------------------------------------------------------

@pytest.mark.parametrize("wrapper", ["state_dict", "network", "model_state_dict"])
def test_wrappers_prefixes_and_both_namings_of_the_bottleneck_give_the_same_variables(weights, converted, wrapper):
  old_names = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
  renamed = {}
  for name, value in weights.items():
    first, _, rest = name.partition(".")
    if first == "entropy_bottleneck" and "." in rest:
      kind, number = rest.split(".")
      name = f"entropy_bottleneck.{old_names[kind]}{number}"
    renamed[f"module.{name}"] = value
  renamed["module.gaussian_conditional.scale_table"] = np.zeros(64, np.float32)  # a buffer
  assert_same(from_state_dict({"epoch": 3, wrapper: renamed}), converted)


def shapes(model: str) -> dict:
  """{common name: what has the shape of the parameter} of a small model."""
  return {common: SimpleNamespace(shape=tuple(shape)) for _, shape, _, kind, common in
          LAYOUTS[model]["small"]["state_dict"] if kind == "parameter"}


def test_a_model_is_recognized_by_its_keys_and_mlic_plus_has_to_be_named():
  contexts = lambda model, variant=None: infer_config(shapes(model), variant).contexts
  assert contexts("mlic") == ("local_stacked", "global_intra_softmax", "channel")
  assert contexts("mlicplus") == contexts("mlicpp") == CodecConfig().contexts
  assert contexts("mlicplus", "mlic_plus") == ("local_attention", "global_intra_softmax", "global_inter_softmax",
                                               "channel")
  assert contexts("mlicv2")[1] == "global_hyper_anchors"
  for model, variant in ("mlic", "mlic_plus"), ("mlicpp", "mlic"), ("mlicv2", "mlic_plus_plus"):
    with pytest.raises(WeightsError, match=f"the keys are those of .*; wanted {variant}"):
      contexts(model, variant)


# --- what is refused ----------------------------------------------------------------------

def test_unknown_and_missing_keys_are_listed_with_the_nearest_names(weights):
  broken = dict(weights)
  broken["h_a.reduction.0.weigth"] = broken.pop("h_a.reduction.0.weight")
  with pytest.raises(WeightsError) as caught:
    from_state_dict(broken)
  message = str(caught.value)
  assert "missing keys: h_a.reduction.0.weight (nearest: h_a.reduction.0.weigth)" in message
  assert "unknown keys: h_a.reduction.0.weigth (nearest: h_a.reduction.0.weight)" in message
  assert "\n" not in message


def test_errors_name_the_keys_of_the_layout_that_came():
  theirs = compressai_fill.fill(LAYOUTS["mlicpp"]["small"]["state_dict"])
  lost, cut = "latent_codec.y.latent_codec.y1.lrp_anchor.lrp_transform.2.bias", "latent_codec.h_a.reduction.0.weight"
  with pytest.raises(WeightsError, match=f"^missing keys: {lost}$"):
    from_state_dict({name: value for name, value in theirs.items() if name != lost})
  with pytest.raises(WeightsError, match=f"^{cut} has the shape "):
    from_state_dict(theirs | {cut: theirs[cut][:, 1:]})
  last = "latent_codec.y.latent_codec.y2.entropy_parameters_anchor.fusion.2.weight"
  with pytest.raises(WeightsError, match=f"it lacks '{last}'; the nearest is 'latent_codec.y."):
    from_state_dict({name: value for name, value in theirs.items() if name != last})


def test_another_state_dict_is_refused():
  with pytest.raises(WeightsError, match="not a state dict of the MLIC models"):
    from_state_dict({"conv.weight": np.zeros((3, 3))})


@pytest.mark.parametrize("fields, layout, message", [
    (dict(num_rates=3), "compressai", "a variable-rate model (num_rates=3), which CompressAI does not have; wanted a "),
    (dict(num_rates=3), "authors", "a variable-rate model (num_rates=3), which the authors' code does not have"),
    (dict(transforms="elic"), "compressai", "transforms='elic' with the contexts of mlic_plus_plus, which CompressAI"),
    (dict(contexts=("channel",)), "authors", "contexts=('channel',), which the authors' code does not have; wanted"),
    (dict(context_ratio=1), "compressai", "context_ratio=1, which CompressAI does not have; wanted 2"),
    (dict(entropy_widths=(8,)), "authors", "entropy_widths=(8,), which the authors' code does not have; wanted (320"),
    (dict(synthesis_width=32, lrp_widths=(152, 112, 72)), "compressai", "synthesis_width=32 with lrp_widths=(152, 112"),
    (dict(lrp_widths=()), "authors", "lrp_widths=(), which the authors' code does not have; wanted 0 with (224, 128)"),
    (dict(options=dict(rotary=True)), "compressai", "the option rotary=True, which CompressAI does not have; wanted F"),
    (dict(M=48), "authors", "[1, 2] heads for 1, 2, ... slices of 16 channels, which the authors' code does not have"),
    (dict(contexts=("local_stacked", "global_intra_softmax", "channel")), "compressai",
     "the option plain_convolutions=False, which CompressAI does not have; wanted True"),
    (dict(contexts=("local_attention", "global_intra_softmax", "global_inter_softmax", "channel"), window_size=7),
     "compressai", "softmax attention that masks a window of 7, which CompressAI does not have; wanted hidden_wind"),
])
def test_a_model_that_the_other_implementation_does_not_have_is_refused_in_one_line(converted, fields, layout, message):
  config = CodecConfig.from_dict({**converted[0].to_dict(), **fields})
  with pytest.raises(WeightsError) as error:
    to_state_dict(config, {"params": {}}, layout)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_mlic_v2_without_a_map_and_mlic_v2_for_the_authors_are_refused():
  config, variables = infer_config(shapes("mlicv2")), {"params": {}}
  with pytest.raises(WeightsError, match="^MLICv2, which the authors' code does not have; wanted mlic, mlic_plus or"):
    to_state_dict(config, variables, "authors")
  without = {name: value for name, value in dict(config.options).items() if not name.startswith("selection")}
  with pytest.raises(WeightsError, match="^MLICv2 without a selection map, which CompressAI does not have"):
    to_state_dict(CodecConfig.from_dict({**config.to_dict(), "options": without}), variables, "compressai")


def test_a_residual_prediction_that_is_wider_than_in_the_first_release_is_refused():
  """All slices of a model that was trained here have the width of the last."""
  weights = golden_fill.fill(json.loads((GOLDEN / "manifest_C.json").read_text()))
  config, variables = from_state_dict(weights)
  wide = jax.tree.map(np.copy, variables)
  wide["params"]["slices"]["steps"]["lrp_anchor"]["conv1"]["kernel"][0, ..., -1] = 1.0
  with pytest.raises(WeightsError, match=r"lrp_anchor.0.lrp_transform.2.weight has 112 outputs; wanted \d+, as in"):
    to_state_dict(config, wide, "authors")
