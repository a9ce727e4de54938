"""Tests of the codec: bit-exact round trips, estimates, all sizes, truncated files, and refusals of other files."""
import dataclasses
import types

import jax
import numpy as np
import pytest
from conftest import random_variables
from helpers.light_codec import LIGHT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.cdf_tables import gaussian_table
from mlic_jax.coding.checkpoint_io import load_model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.latents import LatentError, QualityError
from mlic_jax.coding.rangecoder import Encoder
from mlic_jax.model.mlic import build
from mlic_jax.training.step import COMPILE_QUICKLY

pytestmark = pytest.mark.usefixtures("as_shipped")


@pytest.fixture(scope="module")
def photograph(photograph):
  """An image (65, 195, 3) uint8. With full optimizations 256 padded columns compile three times as fast as 192."""
  return np.tile(photograph, (1, 2, 1))[:, :195]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model without attention; test_files_written_before.py codes with all contexts."""
  path, config = tmp_path_factory.mktemp("checkpoints") / "tiny", dataclasses.replace(LIGHT, lrp_widths=(16,))
  variables = random_variables(config)
  variables["params"]["log_gain"] += 0.5                   # for files that are long beside their headers
  save_model(path, config, variables)
  return load_model(path, allow_custom_modules=True)


@pytest.fixture(scope="module")
def codec(model):
  return Codec(model)


@pytest.fixture(scope="module")
def scanned(photograph, model):
  """An image (64, 64, 3) uint8 at quality 2 in the scan of training: its bits and x_hat with 0, 1 and 2 slices."""
  image = np.ascontiguousarray(photograph[:64, :64])
  run = jax.jit(lambda x, received: build(model.config).apply(model.variables, x, 2.0, received),
                compiler_options=COMPILE_QUICKLY)
  out = run(np.stack([image] * 3) / np.float32(255), np.arange(3))
  bits = out.y_bits.sum((1, 2, 3)) + out.z_bits.sum((1, 2, 3))
  return types.SimpleNamespace(image=image, bits=bits, x_hat=out.x_hat)


@pytest.mark.parametrize("quality", [1, 2, 3, 2.3])
def test_decode_gives_what_the_encoder_predicted(codec, photograph, quality):
  blob, predicted = codec.encode_with_reconstruction(photograph, quality)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert predicted.shape == photograph.shape and predicted.std() > 1


@pytest.mark.parametrize("height, width", [(1, 1), (3, 60), (64, 64), (65, 195)])
def test_any_size_round_trips(codec, photograph, height, width):
  blob, predicted = codec.encode_with_reconstruction(np.ascontiguousarray(photograph[:height, :width]), 2)
  image = codec.decode(blob)
  assert image.shape == (height, width, 3)
  np.testing.assert_array_equal(image, predicted)


def test_latents_that_are_given_make_the_file_that_the_image_makes(codec, photograph):
  latents = codec.latents(photograph, 2)
  assert codec.encode_latents(latents) == codec.encode(photograph, 2)
  other = latents._replace(y=np.asarray(latents.y) * 0.5)
  blob = codec.encode_latents(other)
  assert len(blob) < len(codec.encode(photograph, 2)) and codec.decode(blob).shape == photograph.shape


@pytest.mark.parametrize("change, message", [
    (lambda latents: latents._replace(width=500), "wanted .* for an image of 65x500"),
    (lambda latents: latents._replace(z=np.asarray(latents.z)[..., :-1]), "wanted"),
    (lambda latents: latents._replace(y=latents.y * np.nan), "not finite")])
def test_latents_that_are_not_of_this_codec_are_refused(codec, photograph, change, message):
  with pytest.raises(LatentError, match=message):
    codec.encode_latents(change(codec.latents(photograph, 2)))


def test_another_codec_of_the_same_checkpoint_decodes(codec, photograph, model):
  blob, predicted = codec.encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(Codec(model).decode(blob), predicted)


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_a_file_is_the_estimated_bits_plus_little(codec, photograph, quality):
  bits, estimated = codec.estimate(photograph, quality)
  blob, predicted = codec.encode_with_reconstruction(photograph, quality)
  assert bits / 8 > 500
  assert 0.99 * bits / 8 <= len(blob) <= 1.01 * bits / 8 + 48
  np.testing.assert_array_equal(estimated, predicted)


def test_the_estimate_is_that_of_the_scan_that_training_runs(codec, scanned):
  estimate, _ = codec.estimate(scanned.image, 2)
  np.testing.assert_allclose(estimate, scanned.bits[-1], rtol=1e-3)


def test_a_higher_quality_costs_more(codec, photograph):
  sizes = [len(codec.encode(photograph, quality)) for quality in (1, 1.5, 2, 3)]
  assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_symbols_far_outside_every_table_round_trip(model, photograph):
  params = dict(model.variables["params"], log_gain=model.variables["params"]["log_gain"] + 9.0)
  codec = Codec(model._replace(variables={"params": params}))
  blob, predicted = codec.encode_with_reconstruction(photograph, 2)
  assert len(blob) > 8 * 4096 / 8  # more than a byte for each of the symbols of y
  np.testing.assert_array_equal(codec.decode(blob), predicted)


def test_latents_that_are_not_finite_are_refused(model, photograph):
  params = dict(model.variables["params"], log_gain=np.full_like(model.variables["params"]["log_gain"], 200))
  with pytest.raises(ValueError, match="not finite"):
    Codec(model._replace(variables={"params": params})).encode(photograph)


def test_qualities_are_those_of_the_checkpoint(codec, photograph):
  assert codec.qualities == (1, 2, 3)
  assert codec.encode(photograph) == codec.encode(photograph, 2)  # the middle
  for quality in (0.99, 3.01, float("nan")):
    with pytest.raises(QualityError, match="tiny has 1 to 3"):
      codec.encode(photograph, quality)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), int)])
def test_what_is_no_rgb_image_is_refused_with_its_shape(codec, image):
  with pytest.raises(ValueError, match=r"wanted \(H, W, 3\), uint8"):
    codec.encode(image)


def test_an_empty_image_is_refused(codec):
  with pytest.raises(BitstreamError, match="0x8"):
    codec.encode(np.zeros((0, 8, 3), np.uint8))


def test_a_file_of_another_checkpoint_names_both(codec, photograph):
  content = bitstream.parse(codec.encode(photograph))
  blob = bitstream.write(content._replace(fingerprint=b"\1" * 8))
  with pytest.raises(BitstreamError, match=f"0101010101010101; tiny is {codec.fingerprint.hex()}"):
    codec.decode(blob)


@pytest.mark.parametrize("quality", [None, 3.5])
def test_a_file_with_a_quality_that_the_checkpoint_lacks_is_refused(codec, photograph, quality):
  content = bitstream.parse(codec.encode(photograph))
  with pytest.raises(BitstreamError, match="quality"):
    codec.decode(bitstream.write(content._replace(quality=quality)))


def test_a_file_with_another_number_of_slices_is_refused(codec, photograph):
  content = bitstream.parse(codec.encode(photograph))
  blob = bitstream.write(content._replace(num_slices=3, chunks=(*content.chunks, b""),
                                          symbol_checksums=(*content.symbol_checksums, 0)))
  with pytest.raises(BitstreamError, match="it has 3 slices; tiny has 2"):
    codec.decode(blob)


def test_every_cut_and_altered_file_is_refused(codec, photograph):
  blob = codec.encode(photograph)
  for length in range(0, len(blob), 37):
    with pytest.raises(BitstreamError):
      codec.decode(blob[:length])
    with pytest.raises(BitstreamError):
      codec.decode(blob[:length] + bytes([blob[length] ^ 0x10]) + blob[length + 1:])


def test_an_image_beyond_the_caller_s_limit_is_refused(codec, photograph):
  blob = codec.encode(photograph)
  with pytest.raises(BitstreamError, match="65x195"):
    codec.decode(blob, pixels_max=65 * 195 - 1)


# --- chunks and progressive decoding -----------------------------------------------------

def test_a_single_chunk_decodes_to_the_same_image(codec, photograph):
  blob, predicted = codec.encode_with_reconstruction(photograph, 2)
  single = codec.encode(photograph, 2, chunked=False)
  np.testing.assert_array_equal(codec.decode(single), predicted)
  np.testing.assert_array_equal(codec.decode(single, slices=1), codec.decode(blob, slices=1))
  assert len(single) < len(blob)
  (received, decoded), = codec.decode_progressively(single)
  assert received == len(single)
  np.testing.assert_array_equal(decoded, predicted)


def test_chunks_cost_at_most_half_a_percent_at_a_fifth_of_a_bit_per_pixel():
  """10 slices of a 768x512 image, with as many symbols as the largest models have and 9830 bytes for all of them."""
  table, rng = gaussian_table(np.array([0.11, 0.16, 1.0])), np.random.default_rng(0)
  z = np.round(rng.normal(0, 1.0, (8, 12, 16))).astype(np.int32)
  sizes = 24 * 16 * 32 * np.linspace(1.0, 0.1, 10)                # later slices have less to say
  passes = [np.round(rng.normal(0, 0.33, round(size))).astype(np.int32) for size in sizes]

  def file(chunked):
    encoders = [Encoder(table)]
    encoders[0].encode(z, np.full(z.shape, 2))
    for symbols in passes:
      if chunked:
        encoders.append(Encoder(table))
      encoders[-1].encode(symbols, np.full(symbols.shape, 1))
    chunks = tuple(encoder.finish() for encoder in encoders)
    return len(bitstream.write(bitstream.Bitstream(b"8 bytes.", 512, 768, 2.0, 10, chunks, not chunked)))

  assert 8000 < file(chunked=False) < 12_000
  assert file(chunked=True) - file(chunked=False) <= 0.005 * 0.2 * 768 * 512 / 8


def test_slices_that_are_missing_are_what_their_prior_predicts(codec, scanned):
  """The reference is the scan of training, which omits slices in another way."""
  blob = codec.encode(scanned.image, 2)
  for slices, x_hat in enumerate(scanned.x_hat):
    expected = np.round(np.clip(x_hat, 0, 1) * 255)
    assert np.abs(codec.decode(blob, slices=slices) - expected).mean() < 0.2


def test_progressive_decoding_gives_every_prefix_and_ends_with_the_image(codec, photograph):
  blob, predicted = codec.encode_with_reconstruction(photograph, 2)
  steps = list(codec.decode_progressively(blob))
  assert [received for received, _ in steps] == bitstream.chunk_ends(blob) and steps[-1][0] == len(blob)
  for slices, (received, decoded) in enumerate(steps):
    np.testing.assert_array_equal(codec.decode(blob, slices=slices), decoded)
    np.testing.assert_array_equal(codec.decode(blob[:received], partial=True), decoded)
  np.testing.assert_array_equal(steps[-1][1], predicted)
  assert len({decoded.tobytes() for _, decoded in steps}) == 3


def test_partial_decodes_the_received_slices_of_a_truncated_file(codec, photograph):
  blob = codec.encode(photograph, 2)
  ends = bitstream.chunk_ends(blob)
  for place in (ends[0] + 1, ends[1] - 1, len(blob) - 1):
    with pytest.raises(BitstreamError, match="missing"):
      codec.decode(blob[:place])
    received = sum(end <= place for end in ends) - 1
    np.testing.assert_array_equal(codec.decode(blob[:place], partial=True), codec.decode(blob, slices=received))
  np.testing.assert_array_equal(codec.decode(blob[:-1], slices=0, partial=True), codec.decode(blob, slices=0))
  with pytest.raises(BitstreamError, match="hyperprior"):
    codec.decode(blob[:ends[0] - 1], partial=True)


@pytest.mark.parametrize("slices", [-1, 3])
def test_slices_that_a_file_does_not_have_are_refused(codec, photograph, slices):
  with pytest.raises(BitstreamError, match=f"slices={slices}; wanted an integer from 0 to 2"):
    codec.decode(codec.encode(photograph), slices=slices)


def test_a_profile_travels_in_the_file_and_changes_nothing_else(codec, photograph):
  blob = codec.encode(photograph, 2, icc_profile=b"a color profile")
  assert bitstream.parse(blob).icc_profile == b"a color profile"
  np.testing.assert_array_equal(codec.decode(blob), codec.decode(codec.encode(photograph, 2)))
  with pytest.raises(BitstreamError, match="color profile of the image has 1048577 bytes"):
    codec.encode(photograph, 2, icc_profile=bytes(2**20 + 1))


# --- hostile files -----------------------------------------------------------------------

def decode_forged(codec, content, shape):
  """With matching checksums, any bytes may follow: the decoder neither hangs nor crashes."""
  for each in (content, content._replace(origin=None, symbol_checksums=())):  # which says no other symbols
    try:
      assert codec.decode(bitstream.write(each)).shape == shape
    except BitstreamError as error:
      said = "has the wrong length", "decodes to other symbols than were encoded"
      assert any(line in str(error) for line in said[:1 + bool(each.origin)])


@pytest.mark.parametrize("chunked", [True, False])
def test_a_forged_stream_gives_some_image_or_one_clear_error(codec, photograph, chunked):
  content = bitstream.parse(codec.encode(photograph, chunked=chunked))
  rng = np.random.default_rng(0)
  for place, chunk in enumerate(content.chunks):
    for forged in [b"", b"\xff" * 50, chunk[:100], chunk + b"more", *(rng.bytes(n) for n in (3, 50, 5000))]:
      chunks = (*content.chunks[:place], forged, *content.chunks[place + 1:])
      decode_forged(codec, content._replace(chunks=chunks), photograph.shape)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chunks_in_any_order_decode_or_are_refused(codec, photograph, data):
  check_shuffled(codec, photograph, data)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ten_thousand_forged_files_decode_or_are_refused(codec, photograph, data):
  check_shuffled(codec, photograph, data)


def check_shuffled(codec, photograph, data):
  """A small image, so that the compiled functions are those of other tests."""
  content = bitstream.parse(codec.encode(np.ascontiguousarray(photograph[:64, :64]), 2))
  chunk = st.sampled_from(content.chunks) | st.binary(max_size=200)
  altered = lambda data, place, put: data[:place] + put + data[place + 1:]
  damage = st.builds(altered, chunk, st.integers(0, 200), st.binary(max_size=4))
  quality = data.draw(st.sampled_from([1, 2.5, 3]))
  chunks = tuple(data.draw(st.lists(damage, min_size=3, max_size=3)))
  decode_forged(codec, content._replace(chunks=chunks, quality=quality), (64, 64, 3))


def test_an_image_of_pillow_and_floats_are_coded_as_their_pixels_and_many_as_one(codec, photograph):
  wanted = codec.encode(photograph, 2)
  image = Image.fromarray(photograph)
  counted = []
  assert codec.encode(photograph / np.float32(255), 2) == wanted
  assert list(codec.encode_many([image, photograph], 2, advance=lambda: counted.append(1))) == [wanted, wanted]
  assert len(counted) == 2
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  image.info["icc_profile"] = profile
  blob = codec.encode(image, 2)
  assert bitstream.parse(blob).icc_profile == profile
  assert codec.encode_with_reconstruction(image, 2)[0] == blob
  images = list(codec.decode_many(iter([blob, wanted]), advance=lambda: counted.append(1)))
  np.testing.assert_array_equal(images[0], images[1])
  assert len(counted) == 4
