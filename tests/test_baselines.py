"""JPEG and WebP as files: complete, in the promised format, better and larger as the quality rises."""
import io

import numpy as np
import pytest
from PIL import Image

from mlic_jax.evaluation.baselines import BASELINES, JPEG, JPEG_444, WEBP, decode
from mlic_jax.evaluation.metrics import psnr

rows, columns = np.mgrid[:96, :80][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))


@pytest.mark.parametrize("baseline", [JPEG, JPEG_444, WEBP])
def test_a_higher_quality_costs_bytes_and_gains_psnr(baseline):
  blobs = [baseline.encode(IMAGE, quality) for quality in baseline.qualities]
  sizes = [len(blob) for blob in blobs]
  assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
  values = [psnr(IMAGE, decode(blob)) for blob in blobs]
  assert values[0] + 10 < values[-1]


@pytest.mark.parametrize("baseline, image_format", [(JPEG, "JPEG"), (JPEG_444, "JPEG"), (WEBP, "WEBP")])
def test_a_blob_is_a_complete_file_of_the_same_size_in_pixels(baseline, image_format):
  image = Image.open(io.BytesIO(baseline.encode(IMAGE[:33, :17], 50)))
  assert (image.format, image.size) == (image_format, (17, 33))


def test_jpeg_halves_the_chroma_unless_told_otherwise():
  sampling = {baseline.name: Image.open(io.BytesIO(baseline.encode(IMAGE, 50))).layer[0][1:3]
              for baseline in (JPEG, JPEG_444)}
  assert sampling == {"JPEG 4:2:0": (2, 2), "JPEG 4:4:4": (1, 1)}


def test_huffman_tables_are_optimised():
  plain = io.BytesIO()
  Image.fromarray(IMAGE).save(plain, "JPEG", quality=50, subsampling="4:2:0")
  assert len(JPEG.encode(IMAGE, 50)) < len(plain.getvalue())


def test_names_tell_the_baselines_apart():
  names = [baseline.name for baseline in BASELINES]
  assert len(set(names)) == len(names)
