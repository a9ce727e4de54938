"""The entropy model as pure functions, and the lines of the README."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY, random_variables

from mlic_jax.data.images import save_image
from mlic_jax.model import entropy_model
from mlic_jax.model.mlic import build

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def variables():
  return random_variables(TINY)


def test_predict_gives_what_the_codec_gives(variables):
  x = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
  out = build(TINY).apply(variables, x, 2.0)
  y, hyper = entropy_model.latents(TINY, variables, x, 2.0)
  coded = entropy_model.predict(TINY, variables["params"]["slices"], hyper, y)
  np.testing.assert_allclose(coded.y_hat, out.y_hat, atol=1e-4)
  np.testing.assert_allclose(coded.bits, out.y_bits, atol=1e-4)
  assert coded.mean.shape == coded.scale.shape == y.shape and coded.scale.min() >= 0.11 - 1e-6
  # y_hat is the rounded symbol on top of the mean, and at most half a step of residual prediction.
  assert np.abs(coded.y_hat - (np.round(y - coded.mean) + coded.mean)).max() <= 0.5


def test_new_parameters_have_the_structure_of_a_codec(variables):
  params = jax.eval_shape(lambda key: entropy_model.init(TINY, key), jax.random.key(0))
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes(params) == shapes(variables["params"]["slices"])


def test_the_lines_in_the_readme_compare_contexts(tiny_checkpoint, photograph, tmp_path, monkeypatch, capsys):
  blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
  code, = (block for block in blocks if "entropy_model" in block)
  save_image(tmp_path / "photo.png", photograph[:64, :64])
  monkeypatch.chdir(tmp_path)
  space = {}
  exec(compile(code.replace("checkpoints/nano", str(tiny_checkpoint)), README.name, "exec"), space)
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ["local_checkerboard", "local_stacked"]
  untrained = space["fitted_bits"](("channel", "local_stacked"), steps=0)
  assert 0 < float(lines[1].split()[1]) < untrained
