"""Tests of the Python API: natural inputs are accepted, and others are refused in one line."""
from pathlib import Path

import numpy as np
import pytest
from helpers.light_codec import light_model

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.latents import QualityError
from mlic_jax.data.image_io import ImageError, to_loaded_image


@pytest.fixture(scope="module")
def codec():
  return Codec(light_model())


@pytest.fixture(scope="module")
def image(photograph):
  return photograph[:64, :64]


@pytest.fixture(scope="module")
def blob(codec, image):
  return codec.encode(image, 2)


@pytest.mark.parametrize("buffer", [bytearray, memoryview, lambda blob: np.frombuffer(blob, np.uint8)],
                         ids=["bytearray", "memoryview", "array"])
def test_a_file_is_decoded_from_any_buffer(codec, blob, buffer):
  np.testing.assert_array_equal(codec.decode(buffer(blob)), codec.decode(blob))
  assert [end for end, _ in codec.decode_progressively(buffer(blob))][-1] == len(blob)


@pytest.mark.parametrize("came, message", [
    ("photo.mlic", "input is str; wanted the bytes of a .mlic file; read a file with Path.path..read_bytes"),
    (Path("photo.mlic"), "input is PosixPath; wanted the bytes of a .mlic file; read a file with"),
    (None, "input is NoneType; wanted the bytes of a .mlic file$"),
    (3, "input is int; wanted the bytes of a .mlic file$")])
def test_what_is_no_file_is_refused_in_one_line(codec, came, message):
  with pytest.raises(BitstreamError, match=message) as error:
    codec.decode(came)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("slices", ["2", 1.5])
def test_a_number_of_slices_is_an_integer(codec, blob, slices):
  with pytest.raises(BitstreamError, match=f"slices={slices!r}; wanted an integer from 0 to 2"):
    codec.decode(blob, slices=slices)


@pytest.mark.parametrize("quality", ["3", True, [2], 2j])
def test_a_quality_is_a_number(codec, image, quality):
  with pytest.raises(QualityError, match="; wanted a number"):
    codec.encode(image, quality)


def test_numbers_of_numpy_are_qualities(codec, image, blob):
  assert codec.encode(image, np.float64(2)) == codec.encode(image, np.int32(2)) == blob


def test_a_decoded_image_can_be_written_to(codec, blob):
  decoded = codec.decode(blob)
  decoded[0, 0] = 255
  assert not (codec.decode(blob)[0, 0] == 255).all()


def test_rounding_errors_of_floats_are_clipped_and_larger_ones_are_refused(image):
  levels = image / 255
  for dtype in (np.float32, np.float64):
    near = np.where(levels == levels.max(), 1 + 1e-6, np.where(levels == levels.min(), -1e-6, levels)).astype(dtype)
    found = to_loaded_image(near).image
    assert found[levels == levels.max()].min() == 255 and found[levels == levels.min()].max() == 0
  for wrong in (1.01, -0.01, np.nan, np.inf):
    with pytest.raises(ImageError, match="wanted floats in .0, 1."):
      to_loaded_image(np.where(levels == levels.max(), wrong, levels))


def test_a_masked_array_is_refused_unless_nothing_is_masked(image):
  masked = np.ma.array(image, mask=np.zeros(image.shape, bool))
  np.testing.assert_array_equal(to_loaded_image(masked).image, image)
  masked[0, :2] = np.ma.masked
  with pytest.raises(ImageError, match="got an image with 6 masked values; wanted none, as in image.filled.0."):
    to_loaded_image(masked)


@pytest.mark.parametrize("height, width", [(1, 512_000_000), (512_000_000, 1), (3, 10**8)])
def test_a_line_that_padding_makes_an_image_of_gigapixels_is_refused(codec, blob, height, width):
  content = bitstream.parse(blob)._replace(height=height, width=width)
  with pytest.raises(BitstreamError, match=f"{height}x{width} and is padded to .* megapixels; the limit is"):
    codec.decode(bitstream.write(content))
  bitstream.check_header(bitstream.write(content), pixels_max=2**40)


@pytest.mark.parametrize("height, width", [(22627, 22627), (1, 1), (1, 8_000_000), (16000, 32000)])
def test_images_up_to_the_limit_are_not_refused_for_their_padding(height, width):
  bitstream.check_size(height, width)
