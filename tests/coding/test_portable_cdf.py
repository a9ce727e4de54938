"""Tests of portable files: equal rows across machines, small overhead, and errors for larger differences."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from helpers.light_codec import LIGHT, light_model
from helpers.paper_models import PAPER_MODELS
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.nano import get_config
from mlic_jax.__main__ import main
from mlic_jax.coding import bitstream, jit_functions, latent_coder, portable_cdf
from mlic_jax.coding.bitstream import BitstreamError, PortabilityError
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.portable_cdf import (
  BLOCK_SIZES,
  CHOICE_COUNTS,
  GRIDS,
  HALVED_COUNTS,
  MARGIN_MAX,
  SAFE_SHARES,
  SHIFTS,
  Grids,
  choose_grids,
  choose_rows,
  max_size_index,
  num_blocks,
  required_margins,
  rows,
)
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import save_image
from mlic_jax.model.likelihoods import scale_index, scale_level
from mlic_jax.model.scale_table import SCALE_LEVELS, SCALE_MAX, SCALE_MIN, SCALE_STEP, scale_table
from mlic_jax.model.slices import Prior

EPSILON = 2.0**-portable_cdf.epsilon_exponent(LIGHT)
SMALLEST = BLOCK_SIZES[0]


def noise(shape, size, seed=0):
  """float32 of one absolute value and random sign."""
  return np.float32(size) * np.random.default_rng(seed).choice(np.float32([-1, 1]), shape)


def random_positions(seed, size, spread=8.0, at_minimum=0.8):
  """Returns table positions like those of trained models: most scales are the smallest one."""
  rng = np.random.default_rng(seed)
  return (rng.exponential(spread, size) * (rng.uniform(size=size) > at_minimum)).astype(np.float32)


def spread(positions, epsilon):
  """Returns margins like those of a pass with all scales: epsilon for large scales, and more for small ones."""
  return np.minimum(epsilon * np.exp2(np.maximum(20 - np.minimum(positions, 63), 0) / 3), MARGIN_MAX)


def margin_left(positions, margins, grid):
  """Returns the smallest ratio of distance to margin over the elements, in a grid."""
  shifted = np.minimum(positions, 63) + SHIFTS[grid]
  return (np.abs(shifted - np.rint(shifted)) / margins).min()


# --- positions, grids and rows -------------------------------------------------------------

def test_the_ceiling_of_a_position_is_the_row():
  """Away from the levels, where the float32 of the logarithm decides."""
  scales = np.exp(np.linspace(np.log(SCALE_MIN), np.log(2 * SCALE_MAX), 100_001)).astype(np.float32)
  positions = np.asarray(jax.jit(scale_level)(scales))
  inside = np.abs(positions - np.rint(positions)) > 1e-4
  assert inside.mean() > 0.999
  margins = np.asarray(scale_index(jnp.asarray(scales)))
  np.testing.assert_array_equal(np.minimum(np.ceil(positions[inside]), SCALE_LEVELS - 1), margins[inside])
  levels = np.asarray(jax.jit(scale_level)(scale_table()))
  np.testing.assert_allclose(levels, np.arange(SCALE_LEVELS), atol=2e-5)
  assert abs(levels[0]) < 2e-6


def test_rows_of_a_file_that_is_not_portable_are_those_of_the_index():
  levels = scale_table()
  around = np.concatenate([levels, np.nextafter(levels, np.float32(0)), np.nextafter(levels, np.float32(999)),
                           np.geomspace(SCALE_MIN, 2 * SCALE_MAX, 20_000).astype(np.float32)])
  scales = np.maximum(around, np.float32(SCALE_MIN))
  prior = Prior(jnp.zeros_like(scales), jnp.asarray(scales))
  smallest_level_not_below = np.searchsorted(levels[:-1], scales, side="left")
  np.testing.assert_array_equal(jit_functions.rows(prior), smallest_level_not_below)


def test_no_shift_is_zero_or_moves_an_edge_by_half_a_step_and_they_are_evenly_spread():
  assert len(SHIFTS) == GRIDS and SHIFTS.dtype == np.float32
  np.testing.assert_allclose(SHIFTS[:4] * 56, [-1, 1, -3, 3], rtol=1e-6)
  assert np.abs(SHIFTS).min() > MARGIN_MAX and np.abs(SHIFTS).max() < 0.5
  np.testing.assert_allclose(np.diff(np.sort(SHIFTS)), 1 / 28, rtol=1e-4)
  assert np.all(np.diff(np.abs(SHIFTS)) >= 0)


def test_a_shift_moves_no_row_by_more_than_one():
  positions = np.concatenate([np.linspace(0, 70, 6000), np.arange(64)]).astype(np.float32)
  plain = np.minimum(np.ceil(positions), 63)
  for grid in range(GRIDS):
    shifted = rows(positions, Grids(2048, 0.5, np.full(num_blocks(positions.size, 2048), grid)))
    assert shifted.dtype == np.int32 and np.abs(shifted - plain).max() <= 1


@pytest.mark.parametrize("position, row", [(-1e-6, 0), (0, 0), (0.5, 1), (63, 63), (1e9, 63), (np.inf, 63),
                                           (np.nan, 63)])
def test_rows_stay_in_the_table_whatever_the_position_is(position, row):
  positions = np.full((1, 2, 3, 4), position, np.float32)
  grids, found = choose_rows(positions, np.zeros_like(positions), portable_cdf.origin_of_this_machine())
  np.testing.assert_array_equal(grids.choices, [0])
  np.testing.assert_array_equal(found, np.full(positions.shape, row))


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_blocks_follow_c_order_and_the_last_may_be_short(size):
  positions = np.zeros((1, 3, 5, size // 6), np.float32)     # two blocks, and half of a third
  grids = Grids(size, 0.5, np.array([1, 0, 1], np.int32))
  found = rows(positions, grids).ravel()                      # the second grid puts t = 0 into row 1
  np.testing.assert_array_equal(found, np.arange(positions.size) // size != 1)


def test_a_pass_is_one_block_where_one_grid_is_safe_for_all_and_many_where_each_needs_its_own():
  positions = np.zeros((1, 3, 5, 350), np.float32)
  grids = choose_grids(positions, spread(positions, EPSILON))
  assert (grids.size, grids.share) == (8192, portable_cdf.SINGLE_SHARE)
  np.testing.assert_array_equal(grids.choices, [0])
  for grid in range(GRIDS):                                # at an edge of each grid, all in one half of the pass
    positions.ravel()[10 * grid] = 5 - SHIFTS[grid]
  margins = spread(positions, EPSILON)
  grids, margins = choose_grids(positions, margins), margins.ravel()
  assert grids.size < 280
  for block, chosen in enumerate(grids.choices):
    of_block = slice(block * grids.size, (block + 1) * grids.size)
    assert margin_left(positions.ravel()[of_block], margins[of_block], chosen) > 1 or block == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 20_000), exponent=st.integers(6, 16),
       at_minimum=st.sampled_from([0.0, 0.8, 0.999]))
def test_errors_below_the_margin_give_the_same_rows_where_a_grid_is_safe(
    seed, size, exponent, at_minimum):
  epsilon, positions = 2.0**-exponent, random_positions(seed, size, at_minimum=at_minimum)
  margins = spread(positions, epsilon).astype(np.float32)
  grids = choose_grids(positions, margins)
  shifted = np.minimum(positions, 63) + np.repeat(SHIFTS[grids.choices], grids.size)[:size]
  safe = np.repeat([block.all() for block in np.split(np.abs(shifted - np.rint(shifted)) > margins,
                                                      range(grids.size, size, grids.size))], grids.size)[:size]
  off = positions + np.float32(0.99) * margins * np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)
  np.testing.assert_array_equal(rows(off, grids)[safe], rows(positions, grids)[safe])
  assert safe.all() or exponent < 15 or not at_minimum    # nearly always there is a safe one


def as_pass(scales, means):
  """Table positions and means (1, 1, w, Cs), from lists of the same lengths."""
  scales, means = (np.float32(values)[None, None] for values in (scales, means))
  return np.asarray(scale_level(scales)), np.broadcast_to(means, scales.shape)


def test_the_margin_of_a_large_scale_is_epsilon_and_none_is_above_the_maximum():
  positions, means = as_pass([[200, 0.11]], [[0, 0]])
  np.testing.assert_allclose(required_margins(positions, means, 2.0**-12), 2.0**-12 * 1.3, rtol=1e-4)
  positions, means = as_pass([[200, 0.11], [200, 100]], [[0, 0.01]])
  np.testing.assert_allclose(required_margins(positions, means, 2.0**-12)[0, 0, 0, 1], MARGIN_MAX)


def test_the_margin_follows_the_error_of_spatial_position_and_channel_and_not_the_scale():
  """(margin - epsilon) * scale is that error. It is the same for a small scale and a large one."""
  rng, epsilon = np.random.default_rng(0), 2.0**-16
  scales, means = rng.uniform(0.2, 9, (30, 7)), rng.normal(0, 4, (30, 7)) * rng.uniform(0.1, 2, (30, 1))
  error = (required_margins(*as_pass(scales, means), epsilon)[0, 0] / epsilon - 1) * scales
  of_position = np.sqrt(np.sqrt((scales**2).mean(1)) * np.sqrt((means**2).mean(1)))
  of_channel = np.sqrt((scales**2).mean(0))
  np.testing.assert_allclose(error, 1.25 * of_position[:, None] + 0.3 * of_channel, rtol=1e-4)


def test_narrow_models_have_half_the_margin_of_those_of_the_papers():
  exponents = {name: portable_cdf.origin_of_this_machine(config).epsilon_exponent
               for name, config in PAPER_MODELS.items()}
  assert set(exponents.values()) == {12} and "mlic" in exponents
  nano = CodecConfig.from_dict(get_config().model.to_dict())
  assert {portable_cdf.origin_of_this_machine(config).epsilon_exponent for config in (nano, TINY)} == {13}


def test_means_that_are_not_finite_leave_every_row_as_it_is():
  positions = random_positions(0, 5000, at_minimum=0.5).reshape(1, 5, 10, 100)
  for mean in (np.nan, np.inf):
    grids, found = choose_rows(positions, np.full_like(positions, mean), portable_cdf.origin_of_this_machine())
    np.testing.assert_array_equal(found, rows(positions, grids))


def test_the_first_safe_grid_is_taken_and_without_any_the_one_with_most_of_the_margins():
  for seed, size in ((0, 300), (1, 1500), (2, 5000)):
    positions = np.minimum(random_positions(seed, size, at_minimum=0.0), 63)
    for epsilon in (2.0**-14, 2.0**-12, 2.0**-7, 2.0**-6):
      margins = spread(positions, epsilon)
      grids = choose_grids(positions, margins)
      for block, chosen in enumerate(grids.choices):
        of_block = slice(block * grids.size, (block + 1) * grids.size)
        shares = np.array([margin_left(positions[of_block], margins[of_block], grid) for grid in range(GRIDS)])
        safe = np.flatnonzero(shares > 1)
        assert chosen == (safe[0] if safe.size else shares.argmax())


def bits_of(grids, elements):
  """Returns the bits of the grids of a pass."""
  counts = CHOICE_COUNTS[SAFE_SHARES.index(grids.share)]
  halved = max_size_index(elements) - BLOCK_SIZES.index(grids.size)
  bits = (16 - np.log2(counts[grids.choices])).sum() + 16 - np.log2(HALVED_COUNTS[halved])
  return bits + 3 if len(grids.choices) > 1 else bits


def test_of_the_sizes_that_are_safe_and_the_shares_the_cheapest_is_taken():
  """Safe in all blocks, as every size of 256 and many a larger one is here."""
  for seed in range(8):
    positions = random_positions(seed, 40_000)
    margins, costs = spread(positions, 2.0**-13), []
    for size in BLOCK_SIZES:
      shares = [[margin_left(positions[at:at + size], margins[at:at + size], grid) for grid in range(GRIDS)]
                for at in range(0, positions.size, size)]
      if (np.max(shares, axis=1) > 1).all():
        choices = (np.array(shares) > 1).argmax(axis=1)
        shares = SAFE_SHARES if len(choices) > 1 else [portable_cdf.SINGLE_SHARE]
        costs += [bits_of(Grids(size, share, choices), positions.size) for share in shares]
      if len(choices) == 1:
        break
    assert len(costs) > 8 and bits_of(choose_grids(positions, margins), positions.size) == pytest.approx(min(costs))


@pytest.mark.parametrize("elements, size", [(0, 256), (1, 256), (256, 256), (257, 512), (512, 512), (513, 1024),
                                            (131072, 131072), (10**8, 131072)])
def test_the_largest_size_is_the_smallest_that_holds_the_pass(elements, size):
  assert BLOCK_SIZES[max_size_index(elements)] == size


def test_no_position_is_near_an_edge_of_two_grids():
  """`choose_grids` relies on this, because it checks only the nearest edge."""
  positions = np.linspace(0, 2, 100_001, dtype=np.float32)[:, None]
  assert (np.abs(positions + SHIFTS - np.rint(positions + SHIFTS)) <= MARGIN_MAX).sum(axis=1).max() == 1


# --- the codec ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp("checkpoints") / "light"
  save_model(path, LIGHT, light_model().variables)
  return path


@pytest.fixture(scope="module")
def codec(checkpoint):
  return Codec.load(checkpoint, allow_custom_modules=True)


def disturb(monkeypatch, size):
  """Perturbs the table positions of this machine by `size`, up or down."""
  monkeypatch.setattr(portable_cdf, "rows",
                      lambda positions, choices: rows(positions + noise(positions.shape, size), choices))


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("skip", [None, 0.8])
def test_positions_that_are_off_by_half_of_epsilon_decode_to_the_same_image(
    codec, photograph, monkeypatch, chunked, skip):
  codec = codec.with_options(skip=skip)
  codec = codec.with_options(chunked=chunked)
  for quality in (1, 2, 3):
    blob, predicted = codec.encode_with_reconstruction(photograph, quality)
    with monkeypatch.context() as elsewhere:
      disturb(elsewhere, EPSILON / 2)
      np.testing.assert_array_equal(codec.decode(blob), predicted)


@pytest.mark.parametrize("chunked", [True, False])
def test_positions_that_are_off_by_twenty_epsilon_are_an_error_that_names_both_machines(
    codec, photograph, monkeypatch, chunked):
  blob = codec.encode(np.tile(photograph, (2, 2, 1)), chunked=chunked)   # so large that slice 1 has other rows
  elsewhere = bitstream.Origin(portable_cdf.EPSILON_EXPONENT, "gpu", "aarch64", (0, 6, 1))
  monkeypatch.setattr(portable_cdf, "origin_of_this_machine", lambda: elsewhere)
  disturb(monkeypatch, 20 * EPSILON)
  for decode in (codec.decode, lambda blob: codec.decode(blob, slices=1), lambda blob: codec.decode(blob, partial=True),
                 lambda blob: list(codec.decode_progressively(blob))):
    with pytest.raises(PortabilityError) as error:
      decode(blob)
    message = str(error.value)
    assert re.search(r"^slice [12] of 2 decodes to other symbols than were encoded: the file was written on \w+ \w+, "
                     r"jax [0-9.]+; this is gpu aarch64, jax 0\.6\.1 \(rounding errors above epsilon 2\^-\d+", message)
    assert "\n" not in message


def test_without_the_checksums_such_positions_would_give_another_image(codec, photograph, monkeypatch):
  blob, predicted = codec.encode_with_reconstruction(photograph)
  disturb(monkeypatch, 20 * EPSILON)
  monkeypatch.setattr(portable_cdf, "check_symbols", lambda *args: None)
  monkeypatch.setattr(latent_coder.Decoder, "finish", lambda self: None)
  assert np.abs(codec.decode(blob).astype(int) - predicted).max() > 10


def test_a_file_that_is_not_portable_decodes_to_another_image_or_not_at_all_where_scales_are_off(
    codec, photograph, monkeypatch):
  blob, predicted = codec.with_options(portable=False).encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  rows = jit_functions.rows
  off = lambda scale: scale * np.exp(noise(scale.shape, 20 * EPSILON * SCALE_STEP))
  monkeypatch.setattr(jit_functions, "rows", lambda prior: rows(prior._replace(scale=off(prior.scale))))
  try:
    assert np.abs(codec.decode(blob).astype(int) - predicted).max() > 10
  except BitstreamError as error:
    assert "has the wrong length" in str(error)


def test_an_error_of_the_second_slice_comes_after_the_first_was_found_whole(codec, photograph):
  content = bitstream.parse(codec.encode(photograph))
  first, second = content.symbol_checksums
  blob = bitstream.write(content._replace(symbol_checksums=(first, second ^ 1)))
  np.testing.assert_array_equal(codec.decode(blob, slices=1), codec.decode(bitstream.write(content), slices=1))
  with pytest.raises(PortabilityError, match="slice 2 of 2"):
    codec.decode(blob)
  images = codec.decode_progressively(blob)
  assert [next(images)[1].shape for _ in range(2)] == [photograph.shape] * 2
  with pytest.raises(PortabilityError, match="slice 2 of 2"):
    next(images)


def test_both_kinds_of_file_decode_to_the_same_image_and_being_portable_costs_little(codec, photograph):
  """6 bytes of header, 2 for each of two slices, the grids of four passes, and rows that are less fitting."""
  portable_file, plain = codec.encode(photograph), codec.encode(photograph, portable=False)
  np.testing.assert_array_equal(codec.decode(portable_file), codec.decode(plain))
  assert abs(len(portable_file) - len(plain) - (6 + 2 * 2)) <= 5 + 0.002 * len(plain)
  assert bitstream.parse(plain).origin is None and not bitstream.parse(plain).symbol_checksums
  assert bitstream.parse(portable_file).origin == portable_cdf.origin_of_this_machine(LIGHT)


def test_a_block_for_which_no_grid_is_safe_is_coded_all_the_same(codec, photograph, monkeypatch):
  monkeypatch.setattr(portable_cdf, "EPSILON_EXPONENT", 5)  # 6 for a narrow model
  blob, predicted = codec.encode_with_reconstruction(photograph)
  assert bitstream.parse(blob).origin.epsilon == "2^-6"
  np.testing.assert_array_equal(codec.decode(blob), predicted)


def as_version_2(codec, image, monkeypatch):
  """Returns a file of version 2, before blocks had sizes of their own, or of version 3 with skipped elements."""
  def choose_fixed(positions, margins):
    positions, margins = positions.ravel(), margins.ravel()
    shares = [[margin_left(positions[at:at + 2048], margins[at:at + 2048], grid) for grid in range(GRIDS)]
              for at in range(0, positions.size, 2048)]
    return Grids(2048, 0.7, (np.array(shares) > 1).argmax(axis=1).astype(np.int32))

  def encode_choices(encoder, grids, elements):
    encoder._push(grids.choices, encoder._rows.choice_rows[SAFE_SHARES.index(0.7)])

  with monkeypatch.context() as before:
    before.setattr(portable_cdf, "choose_grids", choose_fixed)
    before.setattr(latent_coder.Encoder, "encode_grids", encode_choices)
    before.setattr(bitstream, "VERSION", 3 if codec.options.skip else 2)
    before.setattr(bitstream, "SKIP", 0)
    return codec.encode_with_reconstruction(image, 2)


@pytest.mark.parametrize("skip", [None, 0.8])
def test_files_of_versions_2_and_3_decode(codec, photograph, monkeypatch, skip):
  codec = codec.with_options(skip=skip)
  blob, predicted = as_version_2(codec, photograph, monkeypatch)
  content = bitstream.parse(blob)
  assert content.version == blob[4] == (2 if skip is None else 3)
  assert content.skipped_rows == codec.options.skipped_rows
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  np.testing.assert_array_equal(predicted, codec.encode_with_reconstruction(photograph, 2)[1])
  assert blob[5] == 4 and content.chunks[1:] != bitstream.parse(codec.encode(photograph, 2)).chunks[1:]


# --- the command line -------------------------------------------------------------------

def test_info_says_where_a_file_was_written_and_no_portable_leaves_it_out(
    tmp_path, photograph, checkpoint, capsys):
  source, coded = tmp_path / "photo.png", tmp_path / "photo.mlic"
  model = ["--ckpt", str(checkpoint), "--allow-custom-modules"]
  save_image(source, photograph)
  for options, line in (([], rf"portable, epsilon 2\^-13, written on {portable_cdf.origin_of_this_machine(LIGHT)}\n"),
                        (["--no-portable"], "only where arithmetic is bit-identical to that of the encoder\n")):
    assert main(["encode", str(source), str(coded), *model, *options]) == 0
    capsys.readouterr()
    assert main(["info", str(coded)]) == 0
    assert re.search(f"decoding +{line}", capsys.readouterr().out)
    assert main(["decode", str(coded), str(tmp_path / "out.png"), *model]) == 0


def test_another_machine_is_one_line_on_stderr_and_leaves_no_image(
    codec, tmp_path, photograph, checkpoint, monkeypatch, capsys):
  (tmp_path / "photo.mlic").write_bytes(codec.encode(photograph))
  disturb(monkeypatch, 20 * EPSILON)
  assert main(["decode", str(tmp_path / "photo.mlic"), str(tmp_path / "out.png"), "--ckpt", str(checkpoint),
               "--allow-custom-modules"]) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and "decodes to other symbols than were encoded" in err
  assert not (tmp_path / "out.png").exists()
