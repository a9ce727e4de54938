"""Tests of encoder options: combinations in any order give the same codec, and rate control uses them."""
import itertools

import numpy as np
import pytest
from helpers.light_codec import light_model

from mlic_jax.coding import bitstream
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.coding.rate_control import encode_to_bytes, encode_to_psnr
from mlic_jax.coding.skip_coding import SkipError
from mlic_jax.metrics import psnr

VALUES = dict(chunked=False, portable=False, skip=0.8, use_map=False, refine=2, lmbda=0.01)
COMBINATIONS = [{name: VALUES[name] for name in names}
                for count in range(len(VALUES) + 1) for names in itertools.combinations(VALUES, count)
                if "refine" in names or "lmbda" not in names]


@pytest.fixture(scope="module")
def codec():
  return Codec(light_model())


@pytest.mark.parametrize("changes", COMBINATIONS, ids=lambda changes: "-".join(changes) or "default")
def test_options_are_the_same_in_whatever_order_they_are_made(codec, changes):
  wanted = EncodeOptions(**changes)
  orders = [order for order in itertools.permutations(changes)
            if "lmbda" not in order or order.index("refine") < order.index("lmbda")]
  for order in orders:
    made = EncodeOptions()
    for name in order:
      made = made.replace(**{name: changes[name]})
    assert made == wanted and hash(made) == hash(wanted)
    assert codec.model_name + made.suffix() == codec.model_name + wanted.suffix()


@pytest.mark.parametrize("changes", [each for each in COMBINATIONS if "refine" not in each or "lmbda" in each],
                         ids=lambda changes: "-".join(changes) or "default")
def test_a_file_has_every_option_and_decodes_to_the_predicted_image(codec, photograph, changes):
  chosen = codec.with_options(**changes)
  blob, predicted = chosen.encode_with_reconstruction(photograph, 2)
  content = bitstream.parse(blob)
  assert content.single_chunk == ("chunked" in changes)
  assert (content.origin is None) == ("portable" in changes)
  assert content.skipped_rows == EncodeOptions(skip=changes.get("skip")).skipped_rows
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  arguments = {name: value for name, value in changes.items() if name != "use_map"}  # which this model does not have
  assert codec.encode(photograph, 2, **arguments) == blob


def test_latents_are_optimized_for_the_file_that_skips(codec, photograph):
  both = codec.with_options(refine=3, lmbda=0.01, skip=0.8)
  again = codec.with_options(refine=3, lmbda=0.01).with_options(skip=0.8)
  assert both.name == again.name == "light, without scales up to 0.8, refined 3 for 0.01"
  assert both.encode(photograph, 2) == again.encode(photograph, 2)
  assert bitstream.parse(both.with_options(refine=None).encode(photograph, 2)).skipped_rows > 0
  assert both.with_options(refine=None).options == EncodeOptions(skip=0.8)


@pytest.mark.parametrize("changes", [dict(skip=0.8), dict(skip=0.8, chunked=False, portable=False)])
def test_rate_control_searches_the_sizes_of_the_codec_that_is_used(codec, photograph, changes, monkeypatch):
  refined, skipped = codec.with_options(refine=1, lmbda=0.01, **changes), []
  encode = Codec.encode
  monkeypatch.setattr(Codec, "encode", lambda self, *args: skipped.append(self.options) or encode(self, *args))
  target = len(encode(refined, photograph, 2))
  reached = encode_to_bytes([refined], photograph, target)
  assert {options.replace(refine=None) for options in skipped} == {EncodeOptions(**changes)}
  assert len(reached.blob) <= target and bitstream.parse(reached.blob).skipped_rows > 0
  assert {options.refine is None for options in skipped} == {True, False}


def test_codecs_with_and_without_latent_optimization_are_searched_together(codec, photograph):
  refined = codec.with_options(refine=1, lmbda=0.01)
  target = psnr(photograph, codec.decode(codec.encode(photograph, 1)))
  reached = encode_to_psnr([codec, refined], photograph, target)
  assert reached.psnr >= target
  alone = encode_to_psnr([codec], photograph, target)
  assert len(reached.blob) <= len(alone.blob)


@pytest.mark.parametrize("changes, error, message", [
    (dict(skip=0.01), SkipError, "skip=0.01; wanted a scale of at least 0.11 and below 256"),
    (dict(skip="much"), SkipError, "skip='much'; wanted a scale, which is a number"),
    (dict(skip=float("nan")), SkipError, "skip=nan; wanted"),
    (dict(refine="soon"), RefineError, "refine='soon'; wanted a number of steps"),
    (dict(refine=3, lmbda=-1), RefineError, "lmbda=-1; wanted a number above 0"),
    (dict(refine=3, lmbda="a lot"), RefineError, "lmbda=a lot; wanted a number above 0"),
    (dict(lmbda=0.1), RefineError, "lmbda=0.1 has no effect without refine")])
def test_an_option_that_cannot_be_is_refused_in_one_line(codec, photograph, changes, error, message):
  for attempt in (lambda: EncodeOptions(**changes), lambda: codec.with_options(**changes),
                  lambda: codec.encode(photograph, 2, **changes)):
    with pytest.raises(error, match=message) as refused:
      attempt()
    assert "\n" not in str(refused.value)


def test_options_cannot_be_changed_and_hold_a_schedule():
  options = EncodeOptions(refine="50s")
  assert options.refine == Schedule(steps=None, seconds=50.0)
  with pytest.raises(AttributeError):
    options.skip = 0.5
