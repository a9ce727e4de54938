"""The codec: bit for bit, near its estimate, for every size, and closed to files that are not its own."""
import zlib

import numpy as np
import pytest

from mlic_jax.checkpoint import load_model
from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.codec import Codec, QualityError
from mlic_jax.model import build


@pytest.fixture(scope="module")
def codec(tiny_checkpoint):
  return Codec.load(tiny_checkpoint)


@pytest.mark.parametrize("quality", [1, 2, 3, 2.3])
def test_decode_gives_what_the_encoder_predicted(codec, photograph, quality):
  blob, predicted = codec.encode_with_reconstruction(photograph, quality)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  assert predicted.shape == photograph.shape and predicted.std() > 1


@pytest.mark.parametrize("height, width", [(1, 1), (3, 60), (64, 64), (65, 130)])
def test_any_size_round_trips(codec, photograph, height, width):
  blob, predicted = codec.encode_with_reconstruction(np.ascontiguousarray(photograph[:height, :width]), 2)
  image = codec.decode(blob)
  assert image.shape == (height, width, 3)
  np.testing.assert_array_equal(image, predicted)


def test_another_codec_of_the_same_checkpoint_decodes(codec, photograph, tiny_checkpoint):
  blob, predicted = codec.encode_with_reconstruction(photograph)
  np.testing.assert_array_equal(Codec.load(tiny_checkpoint).decode(blob), predicted)


@pytest.mark.parametrize("quality", [1, 2, 3])
def test_a_file_is_the_estimated_bits_plus_little(codec, photograph, quality):
  bits, estimated = codec.estimate(photograph, quality)
  blob, predicted = codec.encode_with_reconstruction(photograph, quality)
  assert bits / 8 > 500
  assert 0.99 * bits / 8 <= len(blob) <= 1.01 * bits / 8 + 48
  np.testing.assert_array_equal(estimated, predicted)


def test_the_estimate_is_that_of_the_scan_that_training_runs(codec, photograph, tiny_checkpoint):
  model = load_model(tiny_checkpoint)
  padded = np.pad(photograph, ((0, -photograph.shape[0] % 64), (0, -photograph.shape[1] % 64), (0, 0)), mode="edge")
  out = build(model.config).apply(model.variables, padded[None] / np.float32(255), 2.0)
  np.testing.assert_allclose(codec.estimate(photograph, 2)[0], out.y_bits.sum() + out.z_bits.sum(), rtol=1e-3)


def test_a_higher_quality_costs_more(codec, photograph):
  sizes = [len(codec.encode(photograph, quality)) for quality in (1, 1.5, 2, 3)]
  assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_symbols_far_outside_every_table_round_trip(tiny_checkpoint, photograph):
  model = load_model(tiny_checkpoint)
  params = dict(model.variables["params"], log_gain=model.variables["params"]["log_gain"] + 9.0)
  codec = Codec(model._replace(variables={"params": params}))
  blob, predicted = codec.encode_with_reconstruction(photograph, 2)
  assert len(blob) > 8 * 3072 / 8  # more than a byte for each of the symbols of y
  np.testing.assert_array_equal(codec.decode(blob), predicted)


def test_latents_that_are_not_finite_are_refused(tiny_checkpoint, photograph):
  model = load_model(tiny_checkpoint)
  params = dict(model.variables["params"], log_gain=np.full_like(model.variables["params"]["log_gain"], 200))
  with pytest.raises(ValueError, match="not finite"):
    Codec(model._replace(variables={"params": params})).encode(photograph)


def test_qualities_are_those_of_the_checkpoint(codec, photograph):
  assert codec.qualities == (1, 2, 3)
  assert codec.encode(photograph) == codec.encode(photograph, 2)  # the middle
  for quality in (0.99, 3.01, float("nan")):
    with pytest.raises(QualityError, match="tiny has 1 to 3"):
      codec.encode(photograph, quality)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_what_is_no_rgb_picture_is_refused_with_its_shape(codec, image):
  with pytest.raises(ValueError, match=r"wanted \(H, W, 3\) uint8"):
    codec.encode(image)


def test_an_empty_picture_is_refused(codec):
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


def test_a_forged_stream_gives_some_picture_or_one_clear_error(codec, photograph):
  """Behind a checksum that fits, any bytes may stand: the decoder neither hangs nor crashes."""
  content = bitstream.parse(codec.encode(photograph))
  rng = np.random.default_rng(0)
  streams = [b"", b"\xff" * 50, content.stream[:100], content.stream + b"more", *(rng.bytes(n) for n in (3, 50, 5000))]
  for stream in streams:
    try:
      assert codec.decode(bitstream.write(content._replace(stream=stream))).shape == photograph.shape
    except BitstreamError as error:
      assert "does not end where it should" in str(error)


def test_every_cut_and_altered_file_is_refused(codec, photograph):
  blob = codec.encode(photograph)
  assert zlib.crc32(blob[:-4]) == int.from_bytes(blob[-4:], "big")
  for length in range(0, len(blob), 37):
    with pytest.raises(BitstreamError):
      codec.decode(blob[:length])
    with pytest.raises(BitstreamError):
      codec.decode(blob[:length] + bytes([blob[length] ^ 0x10]) + blob[length + 1:])
