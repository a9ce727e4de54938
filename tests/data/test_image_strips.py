"""Tests of images that are read in strips: they have the pixels of whole files, or are read as a whole."""
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mlic_jax.data import png_strips, strip_files, tiff_strips
from mlic_jax.data.image_io import ImageError, load_image, load_image_with_profile
from mlic_jax.data.image_strips import open_strips
from mlic_jax.data.png_writer import png_chunk
from tools import image_formats

ROWS = 16


@pytest.fixture
def rows(monkeypatch):
  """Returns a function that sets the number of rows of a strip."""
  def set_to(count):
    for module in strip_files, png_strips, tiff_strips:
      monkeypatch.setattr(module, "ROWS", count)
  set_to(ROWS)
  return set_to


@pytest.fixture(scope="module")
def image():
  """Returns an image (75, 53, 3) uint8, smooth with some noise: 5 strips, and all filters of PNG."""
  row, column = np.mgrid[:75, :53][..., None]
  waves = np.sin(row / [9, 14, 23] + 1) + np.cos(column / [17, 8, 12])
  noise = np.random.default_rng(0).normal(0, 6, waves.shape) * (row > 20)
  return np.uint8(np.clip(128 + 50 * waves + noise, 0, 255))


def saved(image, form, mode="RGB", **options):
  """Returns the content of an image file."""
  file = io.BytesIO()
  Image.fromarray(image).convert(mode).save(file, form, **options)
  return file.getvalue()


def check_strips(content):
  """Asserts that the strips of a file have its pixels; returns their heights, () for a file that is read as a whole."""
  strips, whole = open_strips(io.BytesIO(content)), load_image_with_profile(io.BytesIO(content))
  if strips is None:
    return ()
  assert strips.shape == whole.image.shape
  assert (strips.icc_profile, strips.other_color) == whole[1:]
  parts = list(strips)
  np.testing.assert_array_equal(np.concatenate(parts), whole.image)
  np.testing.assert_array_equal(np.concatenate(list(strips)), whole.image)   # they can be read again
  return tuple(map(len, parts))


@pytest.mark.parametrize("count", [4, 3])
def test_every_layout_of_png_and_tiff_has_the_pixels_of_the_whole_file(rows, count):
  """An uncompressed strip of 4 rows is cut into 3 rows and 1; others are not cut."""
  rows(count)
  kinds = {"PNG": set(), "TIFF": set()}
  for case in itertools.chain(image_formats.png_cases(), image_formats.tiff_cases()):
    if image_formats.outcome(case) == "read":
      kinds[case.kind.partition(",")[0]].add(check_strips(case.content))
  assert kinds["PNG"] == {(4, 4, 3) if count == 4 else (3, 3, 3, 2), ()}     # interlaced ones are read as a whole
  assert kinds["TIFF"] == ({(4, 4, 3)} if count == 4 else {(4, 4, 3), (3, 1, 3, 1, 3)})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_pngs_of_all_modes_have_the_pixels_of_the_whole_file(rows, image, mode):
  assert check_strips(saved(image, "PNG", mode)) == (16, 16, 16, 16, 11)


@pytest.mark.parametrize("color_type, depth", [(0, 1), (0, 8), (4, 8), (2, 8), (6, 8)])
@pytest.mark.parametrize("first", range(5))
def test_strips_of_pngs_begin_with_any_filter(rows, color_type, depth, first):
  """Row r has filter first + r, modulo 5, and any bytes: what a filter predicts is up to the decoder."""
  size = -(-53 * depth * png_strips.CHANNELS[color_type] // 8)
  filtered = np.random.default_rng(0).integers(0, 256, (75, 1 + size), np.uint8)
  filtered[:, 0] = (first + np.arange(75)) % 5
  header = png_strips.HEADER.pack(53, 75, depth, color_type, 0, 0, 0)
  parts = (b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")
  assert len(check_strips(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in parts))) == 5


def chunks_of(content):
  place = 8
  while place < len(content):
    size, kind = struct.unpack(">I4s", content[place:place + 8])
    yield kind, content[place + 8:place + 8 + size]
    place += 12 + size


@pytest.mark.parametrize("sizes", [(1, 10**6), (0, 7, 0, 10**6), (1000, 10**6)])
def test_pixels_of_a_png_may_be_in_any_number_of_chunks(rows, image, sizes):
  parts = list(chunks_of(saved(image, "PNG")))
  data, cut = b"".join(part for kind, part in parts if kind == b"IDAT"), []
  for size in sizes:
    cut, data = [*cut, (b"IDAT", data[:size])], data[size:]
  parts = [parts[0], *cut, parts[-1]]
  assert len(check_strips(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in parts))) == 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["PNG", "PPM", "TIFF"]),
       st.sampled_from(["RGB", "L", "1"]), st.integers(1, 40))
def test_strips_of_any_size_have_the_pixels_of_the_whole_file(rows, image, height, width, form, mode, count):
  rows(count)
  heights = check_strips(saved(image[:height, :width], form, mode))
  assert sum(heights) == height and max(heights) <= count


@pytest.mark.parametrize("content", [
    b"P5 # a comment\n3 # another\n 40\n31\n" + bytes(range(32)) * 3 + bytes(24),
    b"P6\n5 40\n255\n" + bytes(range(200)) * 3])
def test_ppms_with_comments_and_other_largest_values_are_read_in_strips(rows, content):
  assert check_strips(content) == (16, 16, 8)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"big_tiff": True}])
def test_strips_of_compressed_tiffs_are_read_one_by_one(rows, image, compression, mode, options):
  row = 53 * len(mode)
  content = saved(image, "TIFF", mode, compression=compression, strip_size=8 * row, **options)
  assert check_strips(content) == (16, 16, 16, 16, 11)
  content = saved(image, "TIFF", mode, compression=compression, strip_size=32 * row, **options)
  assert check_strips(content) == ((16, 16, 16, 16, 11) if compression == "raw" else (32, 32, 11))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_facsimiles_are_read_in_strips(rows, image, compression):
  assert len(check_strips(saved(image, "TIFF", "1", compression=compression, strip_size=7 * 16))) > 1


@pytest.mark.parametrize("planar, compression, order", itertools.product(
    ("contig", "separate"), (None, "adobe_deflate"), ("<", ">")))
def test_tiled_tiffs_are_read_by_rows_of_tiles(rows, image, planar, compression, order):
  file = io.BytesIO()
  pixels = image if planar == "contig" else np.moveaxis(image, -1, 0)
  tifffile.imwrite(file, pixels, tile=(16, 32), photometric="rgb", planarconfig=planar, compression=compression,
                   byteorder=order)
  assert check_strips(file.getvalue()) == (16, 16, 16, 16, 11)
  with open_image_of(file.getvalue()) as opened:
    assert 322 in opened.tag_v2


def open_image_of(content):
  return Image.open(io.BytesIO(content))


def test_an_uncompressed_tiff_of_one_strip_is_read_in_strips(rows, image):
  for order in "<>":
    content = image_formats.tiff(image, 2, order=order, rows_per_strip=75)
    assert check_strips(content) == (16, 16, 16, 16, 11)
  for rows_per_strip in 75, 8:                           # Pillow does not read the number of bytes of strips
    wrong = image_formats.tiff(image, 2, rows_per_strip=rows_per_strip)
    count = struct.pack("<I", 53 * 3 * rows_per_strip)
    assert count in wrong and check_strips(wrong.replace(count, bytes(4))) == (16, 16, 16, 16, 11)
  planes = image_formats.tiff(image, 2, planar=2, rows_per_strip=40)
  assert check_strips(planes) == (16, 16, 8, 16, 16, 3)


def turned(form, orientation, place=None):
  exif = Image.Exif()
  exif[0x112] = orientation
  return dict(exif=exif) if form == "PNG" else dict(tiffinfo={0x112: orientation})


def test_layouts_that_cannot_be_cut_are_read_as_a_whole(rows, image):
  xmp = PngImagePlugin.PngInfo()
  xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
  late = saved(image, "PNG")
  exif = Image.Exif()
  exif[0x112] = 8
  late = late[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + late[-12:]
  whole = [saved(image, "PNG", **turned("PNG", 6)), saved(image, "TIFF", **turned("TIFF", 3)),
           saved(image, "PNG", pnginfo=xmp), late, saved(image, "JPEG"), saved(image, "BMP"), saved(image, "WEBP"),
           saved(image, "PNG", save_all=True, append_images=[Image.fromarray(255 - image)]),
           saved(image, "TIFF", compression="tiff_lzw", strip_size=10**6),
           b"P3\n1 20\n255\n" + b"1 2 3\n" * 20]
  for content in whole:
    assert check_strips(content) == ()
  for content, size in (whole[0], (53, 75, 3)), (whole[2], (53, 75, 3)), (late, (53, 75, 3)):
    assert load_image(io.BytesIO(content)).shape == size
  assert len(check_strips(saved(image, "PNG", **turned("PNG", 1)))) == 5
  assert len(check_strips(saved(image, "TIFF", **turned("TIFF", 1)))) == 5


def test_files_that_cannot_be_read_have_no_strips(rows, image):
  deep = saved(image, "PNG")[:24] + b"\x10" + saved(image, "PNG")[25:]
  for content in (b"", b"no image", deep, saved(image, "PNG")[:30], saved(image, "TIFF", "CMYK")):
    assert open_strips(io.BytesIO(content)) is None
  assert open_strips("missing.png") is None
  assert open_strips(io.BytesIO(saved(image, "PNG")), pixels_max=75 * 53 - 1) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([("PNG", "RGB"), ("PNG", "P"), ("PPM", "RGB"), ("TIFF", "RGB"), ("LZW", "L")]), st.data())
def test_damaged_files_have_the_pixels_of_the_whole_file_or_one_line(rows, image, kind, data):
  form, mode = kind
  content = bytearray(saved(image, "TIFF", mode, compression="tiff_lzw", strip_size=53 * 16) if form == "LZW"
                      else saved(image, form, mode))
  if data.draw(st.booleans()):
    del content[data.draw(st.integers(1, len(content) - 1)):]
  else:
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
  strips = open_strips(io.BytesIO(content))
  if strips is None:
    return
  try:
    found = np.concatenate(list(strips))
  except ImageError as error:
    assert "BytesIO" in str(error) and "\n" not in str(error)
    return
  np.testing.assert_array_equal(found, load_image(io.BytesIO(content)))
