"""Tests of rate control: the best file for a target in few encodes, and errors that name the range.

The codecs are stand-ins whose files grow with the quality by a known rule.
"""
import re

import numpy as np
import pytest

from mlic_jax.coding import rate_control
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.rate_control import TargetError, encode_to_bytes, encode_to_psnr

IMAGE = np.zeros((16, 16, 3), np.uint8)


class StandIn:
  """1000 bytes at quality 1, doubling with each; the decoded image is off by 32 levels at 1, halving with each."""
  options = EncodeOptions()

  def __init__(self, qualities=(1, 2, 3, 4, 5, 6), name="stand-in", size=1000, error=32, unevenness=0):
    self.qualities, self.name, self.size, self.error, self.unevenness = qualities, name, size, error, unevenness
    self.encoded = []

  def encode(self, image, quality=None, icc_profile=None):
    self.encoded.append(quality)
    rate = 1 if quality is None else quality
    size = round(self.size * 2 ** (rate - 1)) + self.unevenness * (round(rate * 256) % 2)
    return (icc_profile or b"").ljust(size, b"?")

  def encode_with_reconstruction(self, image, quality=None, icc_profile=None):
    rate = 1 if quality is None else quality
    decoded = image.astype(int) + round(self.error * 2 ** (1 - rate))
    return self.encode(image, quality, icc_profile), decoded.astype(np.uint8)


def brute_force(codec, target):
  return max(len(codec.encode(IMAGE, q / 256)) for q in range(256, 1537) if len(codec.encode(IMAGE, q / 256)) <= target)


@pytest.mark.parametrize("target", [1000, 1003, 7777, 31_999, 32_000, 10**6])
def test_the_largest_file_within_the_bytes_is_found_in_fourteen_encodes(target):
  codec = StandIn()
  reached = encode_to_bytes([codec], IMAGE, target)
  assert len(codec.encoded) <= 14
  assert len(reached.blob) == brute_force(codec, target)
  assert reached.blob == codec.encode(IMAGE, reached.quality)


@pytest.mark.parametrize("target", [1003, 7777, 20_000])
def test_a_size_that_does_not_quite_rise_still_gives_a_file_within_the_target_and_near_it(target):
  codec = StandIn(unevenness=20)
  reached = encode_to_bytes([codec], IMAGE, target)
  assert 0.98 * target <= len(reached.blob) <= target


@pytest.mark.parametrize("target, error", [(18.0, 32), (30.0, 8), (36.0, 4), (48.13, 1)])
def test_the_smallest_file_at_or_above_the_psnr_is_found(target, error):
  codec = StandIn()
  reached = encode_to_psnr([codec], IMAGE, target)
  assert len(codec.encoded) <= 14
  assert reached.psnr == pytest.approx(20 * np.log10(255 / error), abs=1e-9) and reached.psnr >= target
  one_step_less = codec.encode_with_reconstruction(IMAGE, reached.quality - 1 / 256)[1]
  assert reached.quality == 1 or one_step_less[0, 0, 0] > error


def test_bytes_below_the_smallest_file_are_refused_with_the_range():
  with pytest.raises(TargetError, match="wanted at most 999 bytes; stand-in encodes this image to 1000 to 32000 bytes"):
    encode_to_bytes([StandIn()], IMAGE, 999)


def test_a_psnr_above_the_best_file_is_refused_with_the_range():
  with pytest.raises(TargetError, match="wanted at least 50 dB; stand-in reaches 18.03 to 48.13"):
    encode_to_psnr([StandIn()], IMAGE, 50.0)


def test_a_target_that_every_file_meets_gives_the_last_file_and_says_so():
  assert encode_to_bytes([StandIn()], IMAGE, 32_001)[1:] == (6, b"?" * 32_000, None, True)
  assert encode_to_psnr([StandIn()], IMAGE, 18.0).is_last
  assert not encode_to_bytes([StandIn()], IMAGE, 32_000).is_last
  assert not encode_to_psnr([StandIn()], IMAGE, 18.1).is_last


def test_among_single_rate_codecs_the_best_is_chosen_and_each_runs_once():
  codecs = [StandIn((None,), f"rate{i}", 100 * 2**i, 16 // 2**i) for i in range(4)]
  assert encode_to_bytes(codecs, IMAGE, 450).codec is codecs[2]
  assert [codec.encoded for codec in codecs] == [[None]] * 4
  reached = encode_to_psnr(codecs, IMAGE, 30.0)
  assert reached.codec is codecs[1] and reached.quality is None and len(reached.blob) == 200
  with pytest.raises(TargetError, match="99 bytes; rate0, rate1, rate2, rate3 encodes this image to 100 to 800 bytes"):
    encode_to_bytes(codecs, IMAGE, 99)
  with pytest.raises(TargetError, match="60 dB"):
    encode_to_psnr(codecs, IMAGE, 60.0)


class Uneven(StandIn):
  """Files whose PSNR at each rate, and between two rates in proportion, is that of a list."""

  def __init__(self, *psnrs):
    super().__init__(tuple(range(1, len(psnrs) + 1)))
    self.psnrs = psnrs

  def encode_with_reconstruction(self, image, quality=None, icc_profile=None):
    return self.encode(image, quality), np.interp(quality, self.qualities, self.psnrs)


@pytest.fixture
def psnr_is_said(monkeypatch):
  monkeypatch.setattr(rate_control, "_psnr", lambda image, said: float(said))


@pytest.mark.parametrize("psnrs, target, quality", [
    ((4.28, 4.26, 4.27, 4.25), 4.27, 1),           # of a checkerboard
    ((40.0, 48.48, 44.0, 45.0), 48.47, 2),         # the best is no last one
    ((41.0, 39.0, 38.0, 42.0), 40.0, 1),           # the smallest file, not the last crossing
    ((30.0, 31.0, 30.5, 36.0), 30.5, 1.5),
])
def test_a_psnr_that_a_rate_reaches_is_found_though_psnr_does_not_rise(psnrs, target, quality, psnr_is_said):
  reached = encode_to_psnr([Uneven(*psnrs)], IMAGE, target)
  assert reached.psnr >= target and reached.quality == pytest.approx(quality, abs=0.02)


@pytest.mark.parametrize("psnrs, target", [((4.26, 4.2799, 4.2), 4.28), ((4.28, 4.26, 4.2), 4.281), ((30.0, 30.0), 31)])
def test_a_range_that_is_named_is_that_of_files_and_does_not_hold_the_target(psnrs, target, psnr_is_said):
  with pytest.raises(TargetError) as error:
    encode_to_psnr([Uneven(*psnrs)], IMAGE, target)
  low, high = map(float, re.search(r"reaches ([0-9.]+) to ([0-9.]+) dB with", str(error.value)).groups())
  assert low <= high < target and max(psnrs) - 0.01 < high <= max(psnrs) and abs(low - min(psnrs)) < 0.01


def test_sizes_that_fall_with_quality_are_searched_as_well():
  class Falling(StandIn):
    def encode(self, image, quality=None, icc_profile=None):
      return b"?" * {1: 300, 2: 200, 3: 260}.get(quality, 280)

  codec = Falling((1, 2, 3))
  assert len(encode_to_bytes([codec], IMAGE, 250).blob) == 200
  with pytest.raises(TargetError, match="wanted at most 199 bytes; stand-in encodes this image to 200 to 300"):
    encode_to_bytes([codec], IMAGE, 199)


def test_options_reach_the_encoder():
  assert encode_to_bytes([StandIn()], IMAGE, 1500, icc_profile=b"profile").blob.startswith(b"profile")


# --- latent optimization -------------------------------------------------------------

class Refined:
  """A StandIn whose latents are optimized: `factor` times the bytes, `error` times the error."""

  def __init__(self, plain, factor=0.9, error=0.8):
    self.plain, self.qualities, self.name, self.factor, self.error = plain, plain.qualities, "refined", factor, error
    self.encoded, self.options = [], EncodeOptions(refine=1)

  def with_options(self, refine):
    assert refine is None
    return self.plain

  def encode(self, image, quality=None, icc_profile=None):
    self.encoded.append(quality)
    return b"?" * round(self.factor * len(self.plain.encode(image, quality)))

  def encode_with_reconstruction(self, image, quality=None, icc_profile=None):
    _, decoded = self.plain.encode_with_reconstruction(image, quality)
    return self.encode(image, quality), np.uint8(np.round(self.error * decoded))


@pytest.mark.parametrize("factor", [0.9, 0.99, 1.05])
@pytest.mark.parametrize("target", [1003, 7777, 20_000])
def test_a_size_is_met_after_latent_optimization_in_few_optimizations(target, factor):
  codec = Refined(StandIn(), factor)
  reached = encode_to_bytes([codec], IMAGE, target)
  if factor * 1000 <= target:
    assert reached.codec is codec and 0.985 * target <= len(reached.blob) <= target
  assert len(codec.encoded) <= 3 and len(codec.plain.encoded) <= 30


def test_a_size_that_only_optimized_latents_meet_is_met_and_one_that_they_miss_gives_a_file_without():
  assert encode_to_bytes([Refined(StandIn())], IMAGE, 950)[1:3] == (1, b"?" * 900)
  larger = Refined(StandIn(), factor=1.5)
  reached = encode_to_bytes([larger], IMAGE, 1100)
  assert reached.codec is larger.plain and 1000 <= len(reached.blob) <= 1100
  with pytest.raises(TargetError, match="wanted at most 800 bytes; refined encodes this image to 1000 to 32000 bytes"):
    encode_to_bytes([Refined(StandIn())], IMAGE, 800)


def test_a_size_above_the_largest_optimized_file_gives_it_and_says_so():
  codec = Refined(StandIn())
  assert encode_to_bytes([codec], IMAGE, 33_000) == (codec, 6, b"?" * 28_800, None, True)


def test_a_psnr_is_met_after_latent_optimization():
  codec = Refined(StandIn(error=128))
  reached = encode_to_psnr([codec], IMAGE, 30.0)
  assert reached.codec is codec and 30 <= reached.psnr < 31 and len(codec.encoded) <= 4
  assert reached.quality < encode_to_psnr([codec.plain], IMAGE, 30.0).quality
