"""Tests of images from cameras, scanners and old programs: correct pixels, or a refusal in one line."""
import io
import struct
import threading
import tracemalloc
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from mlic_jax.data.image_io import ImageError, load_image, load_image_with_profile
from mlic_jax.data.image_source import decode, read_header
from mlic_jax.data.pillow_decode import TEXT_MAX, open_image, raised_limits
from tools import image_formats
from tools.image_formats import png, tiff

PILLOW = int(PIL.__version__.partition(".")[0])
rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (16, 24, 3), np.uint8)
SMOOTH = np.uint8(np.mgrid[:16, :24].sum(0)[..., None] * np.array([5, 6, 4]))


def test_every_layout_of_png_and_tiff_is_read_rightly_or_refused_as_the_document_says():
  found = image_formats.table()
  assert "WRONG" not in found
  if PILLOW >= 13:  # that of the document; older ones, the last for old Pythons, refuse more
    assert f"{image_formats.BEGIN}{found}{image_formats.END}" in image_formats.DOCUMENT.read_text()


def test_sixteen_bit_planes_are_refused_by_the_readers_of_images_and_of_training():
  content = tiff(rng.integers(0, 2**16, (8, 9, 3)), 2, 16, planar=2)
  for read in load_image, read_header:
    with pytest.raises(ImageError, match="16 bits per channel"):
      read(io.BytesIO(content))


def test_gray_with_premultiplied_alpha_is_put_on_white_or_refused_where_pillow_does_not_know_it():
  alpha = rng.integers(0, 256, (8, 9))
  gray = rng.integers(0, 256, (8, 9)) * alpha // 255
  file = io.BytesIO(tiff(np.stack([gray, alpha], -1), 1, extra=(1,)))
  if PILLOW < 13:
    with pytest.raises(ImageError, match="of a layout that is not known"):
      load_image(file)
  else:
    np.testing.assert_allclose(load_image(file), np.repeat((gray + 255 - alpha)[..., None], 3, -1), atol=1)


def test_a_palette_of_8_bit_values_is_refused():
  palette = rng.integers(0, 256, (3, 256)).ravel().tolist()
  with pytest.raises(ImageError, match="a palette of 8-bit values"):
    load_image(io.BytesIO(tiff(rng.integers(0, 256, (8, 9, 1)), 3, tags={320: (3, palette)})))


# --- metadata ------------------------------------------------------------------------

def exif(*entries, orientation=6):
  """An EXIF block with an orientation and other entries (tag, type, count, bytes)."""
  entries = [(274, 3, 1, struct.pack("<HH", orientation, 0)), *entries]
  start, directory, values = 8 + 2 + 12 * len(entries) + 4, b"", b""
  for tag, kind, count, value in sorted(entries):
    if len(value) > 4:
      values, value = values + value, struct.pack("<I", start + len(values))
    directory += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
  return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + values


ODD_EXIF = {
    "a signed rational -1/0": exif((282, 10, 1, struct.pack("<ii", -1, 0))),
    "a double that is no number": exif((282, 12, 1, struct.pack("<d", np.nan))),
    "a pointer beyond the end": exif((34665, 4, 1, struct.pack("<I", 10**6))),
    "a type that there is none of": exif((37500, 99, 5, b"????")),
    "text where a number is due": exif((282, 2, 9, b"three\0\0\0\0")),
}


def with_exif(image, block, image_format):
  content = io.BytesIO()
  options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(image_format, {})
  Image.fromarray(image).save(content, image_format, exif=b"Exif\0\0" + block, **options)
  return content


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", ODD_EXIF.values(), ids=ODD_EXIF)
def test_the_orientation_is_applied_whatever_else_exif_holds(block, image_format):
  content = with_exif(SMOOTH, block, image_format)
  np.testing.assert_allclose(load_image(content), np.rot90(SMOOTH, -1), atol=12)
  assert read_header(content).short_side == 16
  if image_format == "JPEG":
    assert decode(content, 2).shape == (12, 8, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("tag", [{282: (10, [-1, 0])}, {282: (12, [np.nan])}, {34665: (4, [10**6])}])
def test_a_tiff_is_read_whatever_its_other_tags_hold(tag):
  content = io.BytesIO(tiff(SMOOTH, 2, tags={274: (3, [6]), **tag}))
  np.testing.assert_array_equal(load_image(content), np.rot90(SMOOTH, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"", b"nonsense", b"II*\0", b"II*\0\xff\xff\xff\x7f", exif()[:20]])
def test_an_image_with_broken_exif_is_read_without_rotation(block):
  for image_format in "JPEG", "PNG", "WEBP":
    np.testing.assert_allclose(load_image(with_exif(SMOOTH, block, image_format)), SMOOTH, atol=12)


def test_a_bad_raw_profile_of_exif_in_a_png_is_ignored():
  for text in b"\nexif\n      10\nno hexadecimal", b"", b"\nexif\n 4\n4949":
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    np.testing.assert_array_equal(load_image(io.BytesIO(png(SMOOTH, 2, 8, chunks=[chunk]))), SMOOTH)


# --- bitmaps -------------------------------------------------------------------------

def bmp(pixels, masks, header_size=108):
  """A BMP of pixels (H, W) of 16 or 32 bits, from the bottom up."""
  bits = 8 * pixels.itemsize
  rows = b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in pixels[::-1])
  header = struct.pack("<IiiHHIIiiII", header_size, pixels.shape[1], pixels.shape[0], 1, bits, 3, len(rows), 0, 0, 0, 0)
  header += struct.pack(f"<{len(masks)}I", *masks)
  header = header.ljust(header_size, b"\0") if header_size > 40 else header
  return struct.pack("<2sIII", b"BM", 14 + len(header) + len(rows), 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize("alpha, seen", [(0, SMOOTH), (255, SMOOTH), (51, np.uint8(SMOOTH * 0.2 + 255 * 0.8 + 0.5))])
def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque(alpha, seen):
  values = SMOOTH.astype(np.uint32)
  pixels = values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2] | np.uint32(alpha << 24)
  np.testing.assert_allclose(
      load_image(io.BytesIO(bmp(pixels, (0xff0000, 0xff00, 0xff, 0xff000000)))).astype(int), seen.astype(int), atol=1)


def test_a_bmp_of_16_bits_a_pixel_holds_less_than_8_a_channel_and_is_read():
  values = SMOOTH.astype(np.uint16) >> np.array([3, 2, 3])
  pixels = (values[..., 0] << 11 | values[..., 1] << 5 | values[..., 2]).astype(np.uint16)
  seen = load_image(io.BytesIO(bmp(pixels, (0xf800, 0x7e0, 0x1f), header_size=40)))
  np.testing.assert_allclose(seen.astype(int), SMOOTH.astype(int), atol=8)


# --- color --------------------------------------------------------------------------

CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)      # of Adobe RGB


@pytest.mark.parametrize("chunks, said", [
    ([], ""),
    ([(b"sRGB", b"\0")], ""),
    ([(b"gAMA", struct.pack(">I", 45455))], ""),
    ([(b"gAMA", struct.pack(">I", 100000))], "gAMA"),
    ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", CHRM)], "cHRM"),
    ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], ""),
    ([(b"cICP", bytes([9, 16, 0, 1])), (b"sRGB", b"\0")], "cICP"),
    ([(b"cICP", bytes([1, 13, 0, 1]))], ""),
])
def test_the_color_information_of_a_png_besides_a_profile_is_reported(chunks, said):
  picture = load_image_with_profile(io.BytesIO(png(SMOOTH, 2, 8, chunks=chunks)))
  np.testing.assert_array_equal(picture.image, SMOOTH)
  assert picture.other_color == said


def test_color_tags_of_a_tiff_and_profiles_of_gray_are_reported():
  whites = {318: (4, [1, 1])}
  assert load_image_with_profile(io.BytesIO(tiff(SMOOTH, 2, tags=whites))).other_color == "WhitePoint"
  content = io.BytesIO()
  gray_profile = bytes(16) + b"GRAY" + bytes(16) + b"acsp" + bytes(100)
  Image.fromarray(SMOOTH[..., 0]).save(content, "PNG", icc_profile=gray_profile)
  assert load_image_with_profile(content).other_color == "a color profile that is not of RGB"


# --- Pillow's limits -----------------------------------------------------------------

def usual_limits():
  return Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY


def png_with_text(size, before):
  """A PNG with a compressed text of `size` bytes before or behind its pixels."""
  content = png(SMOOTH, 2, 8)
  data = b"parameters\0\0" + zlib.compress(bytes(size))
  chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
  place = content.index(b"IDAT" if before else b"IEND") - 4
  return io.BytesIO(content[:place] + chunk + content[place:])


@pytest.mark.parametrize("before", [True, False])
def test_a_png_with_megabytes_of_text_is_read(before):
  """As scanners and image generators write them."""
  content = png_with_text(3 * 2**20, before)
  np.testing.assert_array_equal(load_image(content), SMOOTH)
  assert read_header(content).short_side == 16


@pytest.mark.parametrize("before", [True, False])
def test_a_text_that_would_fill_the_memory_is_refused_before_it_does(before):
  content = png_with_text(TEXT_MAX + 2**20, before)
  tracemalloc.start()
  try:
    with pytest.raises(ImageError, match="a text or color profile has more than 64 MiB"):
      load_image(content)
    assert tracemalloc.get_traced_memory()[1] < 4 * TEXT_MAX
  finally:
    tracemalloc.stop()


def test_a_png_with_megabytes_of_profile_is_read_with_it():
  profile = bytes(16) + b"RGB " + bytes(16) + b"acsp" + bytes(2 * 2**20)
  chunk = (b"iCCP", b"icc\0\0" + zlib.compress(profile))
  picture = load_image_with_profile(io.BytesIO(png(SMOOTH, 2, 8, chunks=[chunk])))
  np.testing.assert_array_equal(picture.image, SMOOTH)
  assert picture.icc_profile == profile


def test_pillow_s_limits_are_its_own_again_after_an_image_was_read():
  usual = usual_limits()
  assert all(usual)
  load_image(io.BytesIO(png(SMOOTH, 2, 8)))
  open_image(io.BytesIO(tiff(SMOOTH, 2))).load()
  with pytest.raises(ImageError):
    load_image(io.BytesIO(b"none"))
  assert usual_limits() == usual


def test_the_limits_come_back_with_the_last_of_several_threads():
  usual, inside, leave = usual_limits(), threading.Event(), threading.Event()

  def stay():
    with raised_limits():
      inside.set()
      leave.wait()

  thread = threading.Thread(target=stay)
  thread.start()
  inside.wait()
  with raised_limits():
    assert usual_limits() == (None, TEXT_MAX, TEXT_MAX)
  assert usual_limits() == (None, TEXT_MAX, TEXT_MAX)   # the other thread is still reading
  leave.set()
  thread.join()
  assert usual_limits() == usual
