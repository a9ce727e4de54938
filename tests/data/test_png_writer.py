"""Tests of PNG files that are written in strips: pixels as in Pillow, and about the size of Pillow's files."""
import io

import numpy as np
import pytest
from PIL import Image

from mlic_jax.data.png_writer import PngWriter


def written(image, strips, icc_profile=None):
  file = io.BytesIO()
  writer = PngWriter(file, *image.shape[:2], icc_profile)
  for start, end in zip([0, *strips], [*strips, len(image)]):
    writer.write(image[start:end])
  writer.finish()
  return file.getvalue()


@pytest.mark.parametrize("shape, strips", [((1, 1), []), ((65, 130), [1, 64]), ((200, 3), [100])])
@pytest.mark.parametrize("noise", [False, True])
def test_pillow_reads_the_pixels_that_were_written(photograph, shape, strips, noise):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*shape, 3), np.uint8) if noise else np.resize(photograph, (*shape, 3))
  opened = Image.open(io.BytesIO(written(image, strips)))
  assert opened.mode == "RGB"
  np.testing.assert_array_equal(np.asarray(opened), image)


def test_strips_do_not_change_the_file_and_it_is_about_as_small_as_pillows(photograph):
  blob, pillow = written(photograph, []), io.BytesIO()
  Image.fromarray(photograph).save(pillow, "PNG")
  assert written(photograph, [64]) == blob and len(blob) < 1.05 * len(pillow.getvalue())


def test_the_profile_is_in_the_file():
  opened = Image.open(io.BytesIO(written(np.zeros((2, 2, 3), np.uint8), [], b"a profile")))
  assert opened.info["icc_profile"] == b"a profile"


def test_a_file_with_too_few_rows_is_not_finished():
  writer = PngWriter(io.BytesIO(), 3, 2)
  writer.write(np.zeros((2, 2, 3), np.uint8))
  with pytest.raises(ValueError, match="1 rows of the PNG are missing"):
    writer.finish()
