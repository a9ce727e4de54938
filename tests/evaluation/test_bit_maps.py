"""Tests that bit maps sum to the estimate of the same image."""
import pytest

from mlic_jax.coding.codec import Codec
from mlic_jax.evaluation.bit_maps import bits_map


def test_the_bits_of_all_places_add_up_to_the_estimate(tiny_checkpoint, photograph):
  codec = Codec.load(tiny_checkpoint)
  for quality in 1, 2.5:
    found = bits_map(codec, photograph, quality)
    assert found.slices.shape == (8, 12, codec.config.num_slices) and found.z.shape == (2, 3)   # 65x130 pixels, padded
    assert found.slices.min() >= 0 and found.z.min() >= 0
    estimate, _ = codec.estimate(photograph, quality)
    assert found.slices.sum() + found.z.sum() == pytest.approx(estimate, rel=1e-3)
