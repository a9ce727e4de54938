"""Tests of cached halos, crops and stages of tiles."""
import json

import pytest
from conftest import TINY, random_variables
from helpers.light_codec import UNSHUFFLED

from mlic_jax.coding import analysis_stages, layer_crops, tile_measurements, tiled_coder
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.codec import Codec
from mlic_jax.runtime import startup


@pytest.fixture(name="cache")
def the_cache_of_a_command(tmp_path, monkeypatch):
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(startup, "code", "as it is now")
  return tmp_path / "cache" / "tiles"


def measured(codec):
  return codec.tiles.halos, codec.tiles._layers, codec.tiles.stages


def test_measurements_are_read_from_the_cache_and_damaged_ones_are_made_again(cache, monkeypatch):
  variables = random_variables(UNSHUFFLED)                  # of the package's transforms, those that compile fastest
  model = Model("unshuffled", UNSHUFFLED, variables, build_table(UNSHUFFLED, variables), b"8 bytes.", None)
  first = measured(Codec(model))
  files = sorted(cache.iterdir())
  assert [file.name.partition("-")[0] for file in files] == ["halos", "layers", "stages"]
  with monkeypatch.context() as patch:
    for module, name in (tiled_coder, "halos"), (layer_crops, "measure"), (analysis_stages, "measure"):
      patch.setattr(module, name, None)
    assert measured(Codec(model)) == first
  for damage in "", "{", "3", "[1]", '["a", "b", "c"]', "[-1, 2, 1]", "[[1]]":
    for file in files:
      file.write_text(damage)
    assert measured(Codec(model)) == first
    assert json.loads(files[0].read_text()) == list(first[0])


def test_other_models_other_code_and_custom_modules_are_measured(cache, monkeypatch):
  calls = []
  def measure(config=TINY, fingerprint=b"1"):
    return tile_measurements.cached("halos", config, fingerprint, tuple, lambda: calls.append(1) or (len(calls),))
  assert measure() == measure() == (1,)
  assert measure(fingerprint=b"2") == (2,)
  monkeypatch.setattr(startup, "code", "changed")
  assert measure() == (3,)
  custom = type("Config", (), dict(transforms="mine.transforms", contexts=(), distribution="gaussian"))
  assert measure(custom) == (4,) and measure(custom) == (5,)
  monkeypatch.setattr(startup, "code", None)      # outside of the commands
  assert measure() == (6,) and measure() == (7,)
