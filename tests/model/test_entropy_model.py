"""Tests of the entropy model as pure functions, and of the examples in docs/research.md."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, random_variables
from helpers.lowered_equations import equations_on, products

from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import save_image
from mlic_jax.model import contexts, entropy_model
from mlic_jax.model.checkerboard import unpack
from mlic_jax.model.mlic import build
from mlic_jax.model.quantizers import Quantizer
from mlic_jax.model.scale_table import SCALE_MIN

SMALL = CodecConfig(N=4, M=8, num_slices=2, transforms="unshuffled", widths=(4, 4), hyper_widths=(4, 4),
                    contexts=("channel",), channel_widths=(4,), entropy_widths=(4,), lrp_widths=(4,), num_rates=2)
ONE_SLICE = dataclasses.replace(SMALL, M=4, num_slices=1, num_rates=3)
BARE = dataclasses.replace(ONE_SLICE, contexts=(), entropy_widths=(), lrp_widths=())  # for what is around the model
# A context for the non-anchors and one for all; other transforms take long to trace.
CODEC = dataclasses.replace(TINY, transforms="helpers.light_transforms", contexts=("local_checkerboard", "channel"),
                            hyper_widths=(8, 8), channel_widths=(8,), entropy_widths=(8,), lrp_widths=(8,))
RESEARCH = Path(__file__).parents[2] / "docs" / "research.md"


@pytest.fixture(scope="module")
def variables():
  return random_variables(CODEC)


@pytest.fixture(scope="module")
def coded_in_three_ways():
  """The output of the codec SMALL, that of its `code`, and y with the result of `predict`, for one image."""
  model, x = build(SMALL), np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)

  @jax.jit
  def code(variables, x):
    y, hyper = entropy_model.latents(SMALL, variables, x, 2.0)
    latents = model.apply(variables, x, 2.0, method="analyze")
    return (model.apply(variables, x, 2.0), model.apply(variables, *latents, 2.0, method="code"),
            (y, entropy_model.predict(SMALL, variables["params"]["slices"], hyper, y)))

  return code(random_variables(SMALL), x)


def test_predict_gives_what_the_codec_gives(coded_in_three_ways):
  out, _, (y, coded) = coded_in_three_ways
  np.testing.assert_allclose(coded.y_hat, out.y_hat, atol=1e-4)
  np.testing.assert_allclose(coded.bits, out.y_bits, atol=1e-4)
  assert coded.mean.shape == coded.scale.shape == y.shape and coded.scale.min() >= 0.11 - 1e-6
  # y_hat is the rounded symbol on top of the mean, and at most half a step of residual prediction.
  assert np.abs(coded.y_hat - (np.round(y - coded.mean) + coded.mean)).max() <= 0.5


@pytest.mark.parametrize("precision, found", [("highest", {"HIGHEST"}), ("default", {"DEFAULT", "HIGHEST"})])
def test_predict_multiplies_in_the_precision_that_it_is_given(variables, precision, found):
  y, hyper = jnp.zeros((1, 4, 4, CODEC.M)), jnp.zeros((1, 4, 4, 2 * CODEC.M))
  run = lambda y: entropy_model.predict(CODEC, variables["params"]["slices"], hyper, y, precision=precision).bits
  assert {each.name for each in products(equations_on(jax.make_jaxpr(run)(y), "tpu"))} == found


@pytest.mark.parametrize("key", [None, jax.random.key(3)])
def test_every_module_of_the_entropy_model_is_seen_by_name_and_slice(variables, key):
  params, rng = variables["params"]["slices"], np.random.default_rng(0)
  y, hyper = (rng.normal(0, 3, (2, 4, 8, n)).astype(np.float32) for n in (CODEC.M, 2 * CODEC.M))
  both = entropy_model.predict, entropy_model.intermediates
  coded, slices = jax.jit(lambda params: [function(CODEC, params, hyper, y, key) for function in both])(params)
  assert len(slices) == CODEC.num_slices
  cs, top_level = CODEC.slice_channels, {name.split("/")[0] for name in params["steps"]}
  for k, modules in enumerate(slices):
    silent = {f"contexts_{name}" for name in CODEC.contexts
              if k == 0 and "decoded" in contexts.make_context(name, CODEC).needs}
    assert {name for name in modules if "/" not in name} == top_level - silent
    raw_scale, mean = (sum(unpack(jnp.split(modules[f"entropy_{name}"], 2, axis=-1)[half], anchors)
                           for name, anchors in (("anchor", True), ("nonanchor", False))) for half in (0, 1))
    np.testing.assert_allclose(mean, coded.mean[..., k * cs:(k + 1) * cs], atol=1e-4)
    np.testing.assert_allclose(jnp.maximum(raw_scale, SCALE_MIN), coded.scale[..., k * cs:(k + 1) * cs], atol=1e-4)


def test_a_custom_quantizer_stands_for_rounding_in_the_scan_and_in_the_codec():
  variables, rng = random_variables(ONE_SLICE), np.random.default_rng(0)
  y, hyper = (rng.normal(0, 3, (1, 4, 4, n)).astype(np.float32) for n in (ONE_SLICE.M, 2 * ONE_SLICE.M))
  nothing = Quantizer(lambda residual, _: (residual, residual))
  predict = lambda *args: jax.jit(lambda params: entropy_model.predict(ONE_SLICE, params, hyper, y, *args))(
      variables["params"]["slices"])
  coded = predict(None, nothing)
  assert np.abs(coded.y_hat - y).max() <= 0.5 + 1e-5  # residual prediction alone is left
  half = Quantizer(lambda residual, draws: (residual + draws, residual), draw=lambda key, shape: jnp.full(shape, 8.0))
  moved = predict(jax.random.key(0), half)
  assert (moved.y_hat - y).min() >= 7.5 - 1e-5

  z = np.zeros((1, 1, 1, ONE_SLICE.N), np.float32)
  code = jax.jit(lambda variables: build(ONE_SLICE).apply(variables, y, z, 2.0, quantizer=nothing, method="code"))
  out = code(variables)
  assert np.abs(out.y_hat - y).max() <= 0.5 + 1e-5


def test_code_of_the_latents_of_an_image_gives_the_output_of_the_codec(coded_in_three_ways):
  out, from_latents, _ = coded_in_three_ways
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), out, from_latents)


def test_the_relaxation_in_the_research_notes_codes(tmp_path, photograph):
  save_model(tmp_path / "small", BARE, random_variables(BARE))
  text = RESEARCH.read_text()
  code, = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "soft_round" in block)
  space = {"image": photograph}
  code = code.replace("checkpoints/nano", str(tmp_path / "small"))
  exec(compile(code, "research.md", "exec"), space)
  assert np.isfinite(space["out"].y_bits).all() and space["codec"].decode(space["blob"]).shape == photograph.shape


def test_the_relaxation_for_refining_in_the_research_notes_refines(tmp_path, photograph, capsys):
  save_model(tmp_path / "small", BARE, random_variables(BARE),
             training={"config": {"distortion": "mse", "lmbdas": [0.002, 0.01, 0.05]}})
  text = RESEARCH.read_text()
  code, = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "cosine" in block)
  code = code.replace("checkpoints/nano", str(tmp_path / "small")).replace("steps=100", "steps=20")
  code = code.replace('"sigmoid", cosine', "cosine,")   # the first is compiled elsewhere
  space = {"image": photograph}
  exec(compile(code, "research.md", "exec"), space)
  lines = capsys.readouterr().out.splitlines()
  refined = space["refined"]
  plain = refined.optimizer.loss_of_file(photograph, 3, *space["codec"].encode_with_reconstruction(photograph, 3))
  assert len(lines) == 1 and float(lines[0].split()[-1]) < plain


def test_new_parameters_have_the_structure_of_a_codec(variables):
  params = jax.eval_shape(lambda key: entropy_model.init(CODEC, key), jax.random.key(0))
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes(params) == shapes(variables["params"]["slices"])


def test_the_example_in_docs_research_compares_contexts(photograph, tmp_path, monkeypatch, capsys):
  save_model(tmp_path / "small", BARE, random_variables(BARE))
  blocks = re.findall(r"```python\n(.*?)```", RESEARCH.read_text(), re.DOTALL)
  code = "\n".join(block for block in blocks if "entropy_model" in block)
  save_image(tmp_path / "photo.png", photograph[:64, :64])
  monkeypatch.chdir(tmp_path)
  loop, space = "  for step in range(steps):\n", {"untrained": []}
  assert code.count(loop) == 1
  code = code.replace(loop, f"  untrained.append(float(rate(params)))\n{loop}").replace("steps=200", "steps=40")
  exec(compile(code.replace("checkpoints/nano", "small"), RESEARCH.name, "exec"), space)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines[:2]] == ["local_checkerboard", "local_stacked"]
  assert len(lines) == 2 + BARE.num_slices and "'entropy_anchor': (1, 4, 2, " in lines[2]
  for line, untrained in zip(lines[:2], space["untrained"], strict=True):
    assert 0 < float(line.split()[1]) < untrained
