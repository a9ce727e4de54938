"""Tests of round-weights: rounded parameters, and a fingerprint of its own."""
import jax
import numpy as np
import pytest

from mlic_jax.__main__ import main
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.coding.codec import Codec
from mlic_jax.commands.round_weights import rounded


def size(folder):
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_shrunk_model_is_near_and_smaller_and_codes(tiny_checkpoint, photograph, tmp_path, capsys):
  assert main(["round-weights", str(tiny_checkpoint), str(tmp_path / "small"), "--mantissa-bits", "10"]) == 0
  assert "10 bits of mantissa" in capsys.readouterr().out
  assert size(tmp_path / "small") < 0.8 * size(tiny_checkpoint)
  one, two = load_model(tiny_checkpoint), load_model(tmp_path / "small")
  assert (one.config, one.training) == (two.config, two.training)
  for a, b in zip(*(jax.tree.leaves(model.variables) for model in (one, two)), strict=True):
    assert np.all(np.abs(a - b) <= np.abs(a) * 2.0**-11)
  codec = Codec.load(tmp_path / "small")
  blob, predicted = codec.encode_with_reconstruction(photograph, quality=2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  with pytest.raises(BitstreamError, match="checkpoint"):
    Codec.load(tiny_checkpoint).decode(blob)


def test_rounding_takes_the_nearest_value_with_so_many_bits():
  values = np.float32([0, 1, -1.0625, 1.03125, 1.09375, 3e38, -1e-38])
  np.testing.assert_array_equal(rounded(values, 4)[:5], np.float32([0, 1, -1.0625, 1, 1.125]))
  np.testing.assert_array_equal(rounded(values, 23), values)
  assert np.isfinite(rounded(values, 8)).all()
  assert rounded(np.int32([3]), 1) == 3


def test_what_is_there_is_not_replaced_and_bits_are_of_float32(tiny_checkpoint, tmp_path, capsys):
  assert main(["round-weights", str(tiny_checkpoint), str(tmp_path)]) == 2
  assert "exists; wanted a new directory" in capsys.readouterr().err
  assert main(["round-weights", str(tiny_checkpoint), str(tmp_path / "a"), "--mantissa-bits", "24"]) == 2
  assert "wanted 1 to 23" in capsys.readouterr().err
