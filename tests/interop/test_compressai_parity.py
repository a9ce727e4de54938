"""Tests of parity with CompressAI's MLIC models, after conversion of their state dicts, without PyTorch.

tests/fixtures/compressai/README.md describes how the arrays were recorded."""

import functools
import hashlib
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import compressai_fill

from mlic_jax.config import CodecConfig
from mlic_jax.interop import layer_map
from mlic_jax.interop.reference_weights import from_state_dict, infer_config, to_state_dict
from mlic_jax.model.complexity import describe
from mlic_jax.model.mlic import CodecOutput, build

pytestmark = pytest.mark.usefixtures("as_shipped")

LAYOUTS = compressai_fill.layouts()
STATS = json.loads((compressai_fill.FIXTURES / "stats.json").read_text())
# The two models whose keys are the same have to be told apart; the other two are recognized.
VARIANTS = {"mlic": None, "mlicplus": "mlic_plus", "mlicpp": None, "mlicv2": None}
RECORDED = ("mlic", "mlicpp", "mlicv2")
DEAD = ".slice_values."  # parameters of CompressAI's MLICv2 that its forward pass never reads


@functools.cache
def weights(model: str, size: str = "small") -> dict[str, np.ndarray]:
  return compressai_fill.fill(LAYOUTS[model][size]["state_dict"])


@functools.cache
def converted(model: str) -> tuple[CodecConfig, dict]:
  return from_state_dict(weights(model), VARIANTS[model])


@functools.cache
def output(model: str) -> CodecOutput:
  config, variables = converted(model)
  height, width = STATS[model]["input"][2:]
  return jax.jit(build(config).apply)(variables, compressai_fill.image(STATS[model]["seed"], height, width))


@pytest.mark.parametrize("model", VARIANTS)
def test_the_weights_are_those_that_the_arrays_were_recorded_with(model):
  """The hash is over the parameters in the order of the state dict."""
  filled = b"".join(each.astype("<f4").tobytes() for each in weights(model).values())
  assert hashlib.sha256(filled).hexdigest() == STATS[model]["fill_sha256"]


@pytest.mark.parametrize("model", RECORDED)
def test_the_recorded_reconstruction_is_reproduced(model):
  recorded = {name: np.moveaxis(a, 1, -1) for name, a in np.load(compressai_fill.FIXTURES / f"{model}.npz").items()}
  out = output(model)
  np.testing.assert_allclose(out.x_hat, recorded["x_hat"], rtol=0, atol=1e-5)
  np.testing.assert_allclose(out.y_hat, recorded["y_hat"], rtol=0, atol=1e-4)
  np.testing.assert_allclose(2.0**-out.y_bits, recorded["y_likelihoods"], rtol=0, atol=1e-4)
  np.testing.assert_allclose(2.0**-out.z_bits, recorded["z_likelihoods"], rtol=0, atol=1e-4)
  if "keep" in recorded:
    np.testing.assert_array_equal(np.asarray(out.y_bits) > 0, recorded["keep"] & (recorded["y_likelihoods"] < 1))


@pytest.mark.parametrize("model", VARIANTS)
def test_the_recorded_bits_are_reproduced(model):
  for name in "y_bits", "z_bits":
    total = np.asarray(getattr(output(model), name), np.float64).sum()
    np.testing.assert_allclose(total, STATS[model][name], rtol=1e-6)


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("model", VARIANTS)
def test_what_is_written_has_the_names_shapes_and_types_of_compressai(model, size):
  entries = LAYOUTS[model][size]["state_dict"]
  arrays = weights(model, size)
  written = to_state_dict(*from_state_dict(arrays, VARIANTS[model]), "compressai")
  assert {name: (list(a.shape), str(a.dtype)) for name, a in written.items()} == {
      name: (shape, dtype) for name, shape, dtype, *_ in entries}
  for name, array in arrays.items():
    np.testing.assert_array_equal(written[name], 0 if DEAD in name else array, err_msg=name)


def test_slices_of_16_channels_have_the_heads_of_compressai():
  config, _ = from_state_dict(weights("mlicpp", "tiny"))
  assert config.slice_channels == 16 and dict(config.options) == dict(head_channels=32)


def paper_size(model: str) -> tuple[CodecConfig, int]:
  """The config at the size of the papers, and how many parameters the forward pass of CompressAI's model reads."""
  layout = LAYOUTS[model]["paper"]
  shapes = {common: SimpleNamespace(shape=tuple(shape)) for _, shape, _, _, common in layout["state_dict"]}
  dead = sum(math.prod(shape) for name, shape, *_ in layout["state_dict"] if DEAD in name)
  return infer_config(shapes, VARIANTS[model]), layout["parameters"] - dead


@pytest.mark.parametrize("model", VARIANTS)
def test_the_arrays_at_the_size_of_the_papers_are_all_parameters_of_compressai(model):
  config, parameters = paper_size(model)
  assert sum(math.prod(entry.shape) for entry in layer_map.entries(config)) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlic", "mlicplus", "mlicpp"])  # a random selection map hides others of MLICv2
def test_live_parameters_at_the_size_of_the_papers_are_those_of_compressai(model):
  config, parameters = paper_size(model)
  assert sum(part.parameters for part in describe(config)) == parameters
