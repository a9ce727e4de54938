"""Tests of reading and writing images: conversion to RGB, and refusals in one line with the file name."""
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from mlic_jax.data.image_io import (
  ImageError,
  list_images,
  load_image,
  load_image_with_profile,
  save_image,
  to_loaded_image,
)
from mlic_jax.data.image_source import decode, read_header

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (5, 7, 3), np.uint8)
GRAY = rng.integers(0, 256, (5, 7), np.uint8)


def saved(folder, image, name="photo.png", **options):
  image.save(folder / name, **options)
  return folder / name


def png_16_bit(color_type, channels):
  """A PNG of 2x2 pixels with 16 bits a channel, which Pillow reads as 8-bit RGB but cannot write."""
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  rows = (b"\0" + bytes(range(4 * channels))) * 2
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, color_type, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_rgb_comes_back_as_it_was(tmp_path):
  np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_grayscale_and_one_bit_are_repeated_over_the_channels(tmp_path):
  np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(GRAY))), np.stack([GRAY] * 3, -1))
  bits = GRAY > 127
  one_bit = load_image(saved(tmp_path, Image.fromarray(bits)))
  np.testing.assert_array_equal(one_bit, np.stack([bits * np.uint8(255)] * 3, -1))


def test_a_palette_is_looked_up(tmp_path):
  palette = Image.fromarray(RGB).quantize(8)
  np.testing.assert_array_equal(load_image(saved(tmp_path, palette)), np.array(palette.convert("RGB")))


def test_transparency_is_composited_on_white(tmp_path):
  alpha = np.full((5, 7, 1), 255, np.uint8)
  alpha[0], alpha[1] = 0, 51                                                          # invisible, a fifth opaque
  rgba = load_image(saved(tmp_path, Image.fromarray(np.concatenate([RGB, alpha], -1))))
  assert (rgba[0] == 255).all()
  np.testing.assert_allclose(rgba[1], 0.2 * RGB[1] + 0.8 * 255, atol=1)
  np.testing.assert_array_equal(rgba[2:], RGB[2:])
  la = load_image(saved(tmp_path, Image.fromarray(np.concatenate([GRAY[..., None], alpha], -1))))
  np.testing.assert_array_equal(la[2:, :, 0], GRAY[2:])
  assert (la[0] == 255).all()


def test_a_transparent_palette_entry_is_white(tmp_path):
  palette = Image.fromarray(RGB).quantize(4)
  seen = load_image(saved(tmp_path, palette, transparency=2))
  assert (seen[np.array(palette) == 2] == 255).all()


@pytest.mark.parametrize("orientation, upright", [
    (1, RGB), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))])
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
  exif = Image.Exif()
  exif[0x0112] = orientation
  np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(RGB), exif=exif)), upright)


@pytest.mark.parametrize("color_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused(tmp_path, color_type, channels):
  (tmp_path / "deep.png").write_bytes(png_16_bit(color_type, channels))
  with pytest.raises(ImageError, match="deep.png: 16 bits per channel; wanted an 8-bit"):
    load_image(tmp_path / "deep.png")


def test_sixteen_bit_and_float_tiff_are_refused(tmp_path):
  with pytest.raises(ImageError, match="16 bits"):
    load_image(saved(tmp_path, Image.fromarray(GRAY.astype(np.uint16)), "deep.tif"))
  with pytest.raises(ImageError, match="32 bits"):
    load_image(saved(tmp_path, Image.fromarray(GRAY.astype(np.float32)), "float.tif"))


def test_cmyk_is_refused(tmp_path):
  with pytest.raises(ImageError, match="ink.jpg: color mode CMYK; wanted an 8-bit RGB"):
    load_image(saved(tmp_path, Image.fromarray(RGB).convert("CMYK"), "ink.jpg"))


def jpeg_bytes():
  buffer = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
  return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", jpeg_bytes()[:700], png_16_bit(2, 3)[:40]])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, content):
  (tmp_path / "broken.jpg").write_bytes(content)
  with pytest.raises(ImageError) as error:
    load_image(tmp_path / "broken.jpg")
  assert "broken.jpg" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ImageError, match="gone.png: no such file"):
    load_image(tmp_path / "gone.png")


def test_images_are_listed_sorted_and_recursively(tmp_path):
  (tmp_path / "sub").mkdir()
  for name in ["b.PNG", "a.jpg", "sub/c.webp", "notes.txt", ".hidden.png"]:
    (tmp_path / name).touch()
  assert list_images(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.PNG", tmp_path / "sub/c.webp"]


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path):
  with pytest.raises(ImageError, match="gone: no such folder"):
    list_images(tmp_path / "gone")
  with pytest.raises(ImageError, match="holds no image"):
    list_images(tmp_path)
  with pytest.raises(ImageError, match="photo.png: is not a folder"):
    list_images(saved(tmp_path, Image.fromarray(RGB)))


@pytest.mark.parametrize("extension", ["png", "webp", "bmp", "tif"])
def test_what_is_saved_is_loaded_again_bit_for_bit(tmp_path, extension):
  save_image(tmp_path / f"out.{extension}", RGB)
  np.testing.assert_array_equal(load_image(tmp_path / f"out.{extension}"), RGB)
  assert [path.name for path in tmp_path.iterdir()] == [f"out.{extension}"]


def test_saving_refuses_lossy_formats_missing_folders_and_other_arrays(tmp_path):
  with pytest.raises(ImageError, match="cannot write .jpg without loss"):
    save_image(tmp_path / "out.jpg", RGB)
  with pytest.raises(ImageError, match="No such file or directory"):
    save_image(tmp_path / "gone" / "out.png", RGB)
  with pytest.raises(ImageError, match="wanted .H, W, 3. uint8"):
    save_image(tmp_path / "out.png", GRAY)
  assert not list(tmp_path.iterdir())


# --- what else lies in folders of images ------------------------------------------

def tiff(samples, bits, photometric, rows, sample_format=1):
  """A TIFF of 2x2 pixels without compression; Pillow reads some kinds that it cannot write."""
  entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric),
             (273, 4, 1, 0), (277, 3, 1, samples), (278, 3, 1, 2), (279, 4, 1, len(rows)), (339, 3, 1, sample_format)]
  place = 8 + 2 + 12 * len(entries) + 4
  if samples > 1:                                                       # bits and format, a number for each sample
    many = struct.pack(f"<{samples}H", *[bits] * samples) + struct.pack(f"<{samples}H", *[sample_format] * samples)
    entries[2], entries[9] = (258, 3, samples, place), (339, 3, samples, place + 2 * samples)
    if samples == 2:                                                    # two shorts fit into their entry
      entries[2], entries[9] = (258, 3, 2, bits * 65537), (339, 3, 2, sample_format * 65537)
  else:
    many = b""
  entries[5] = (273, 4, 1, place + len(many))
  return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
          + struct.pack("<I", 0) + many + rows)


def test_a_tiff_of_8_bits_is_read_and_a_negative_one_turned(tmp_path):
  rows = bytes(range(0, 240, 20))
  (tmp_path / "rgb.tif").write_bytes(tiff(3, 8, 2, rows))
  np.testing.assert_array_equal(load_image(tmp_path / "rgb.tif"), np.frombuffer(rows, np.uint8).reshape(2, 2, 3))
  (tmp_path / "negative.tif").write_bytes(tiff(1, 8, 0, bytes([0, 10, 200, 255])))
  np.testing.assert_array_equal(load_image(tmp_path / "negative.tif")[..., 0], [[255, 245], [55, 0]])


@pytest.mark.parametrize("samples, bits, photometric, sample_format, message", [
    (3, 16, 2, 1, "16 bits per channel"), (1, 16, 1, 1, "16 bits per channel"), (1, 16, 1, 2, "16 bits per channel"),
    (1, 32, 1, 1, "32 bits per channel"), (1, 32, 1, 3, "32 bits per channel"), (3, 8, 8, 1, "color mode LAB"),
    (4, 8, 5, 1, "color mode CMYK"), (3, 32, 2, 3, "cannot be read"), (1, 64, 1, 3, "cannot be read")])
def test_a_tiff_of_more_than_8_bits_or_in_other_colors_is_refused(
    tmp_path, samples, bits, photometric, sample_format, message):
  """Sample format 2 is signed, 3 floats."""
  (tmp_path / "scan.tif").write_bytes(tiff(samples, bits, photometric, bytes(4 * samples * bits // 8), sample_format))
  with pytest.raises(ImageError, match=f"scan.tif: {message}"):
    load_image(tmp_path / "scan.tif")


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp", "photo.tif", "photo.bmp"])
def test_a_truncated_file_is_refused_in_every_format(tmp_path, name):
  path = saved(tmp_path, Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), name)
  path.write_bytes(path.read_bytes()[:-path.stat().st_size // 3])
  with pytest.raises(ImageError, match=f"{name}: cannot be read as an image"):
    load_image(path)


def test_of_several_frames_the_first_is_read(tmp_path):
  frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
  for name in ("moving.webp", "pages.tif", "moving.png"):
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:],
                 **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(load_image(path), np.array(frames[0]))


def test_a_transparent_palette_with_alpha_and_a_transparent_color_are_white(tmp_path):
  alpha = np.where(GRAY > 127, 255, 0).astype(np.uint8)
  pa = Image.fromarray(RGB).quantize(8).convert("PA")
  pa.putalpha(Image.fromarray(alpha))
  assert pa.mode == "PA"
  seen = load_image(saved(tmp_path, pa.convert("RGBA"), "pa.png"))
  assert (seen[alpha == 0] == 255).all() and not (seen[alpha > 0] == 255).all()
  keyed = load_image(saved(tmp_path, Image.fromarray(RGB), "keyed.png", transparency=tuple(RGB[0, 0].tolist())))
  assert (keyed[0, 0] == 255).all()
  np.testing.assert_array_equal(keyed[1:], RGB[1:])


def test_a_format_that_is_not_listed_is_refused_whatever_its_extension(tmp_path):
  path = tmp_path / "photo.png"
  Image.fromarray(RGB).save(path, format="GIF")
  with pytest.raises(ImageError, match="photo.png: cannot be read as an image"):
    load_image(path)


def test_an_image_beyond_the_limit_is_refused_by_its_size_alone(tmp_path):
  path = saved(tmp_path, Image.fromarray(RGB))
  assert load_image_with_profile(path, pixels_max=35).image.shape == RGB.shape
  with pytest.raises(ImageError, match="photo.png: 7x5, 0 megapixels; the limit is 0"):
    load_image_with_profile(path, pixels_max=34)


@pytest.mark.filterwarnings("error")
def test_an_image_above_the_limit_of_pillow_is_read(tmp_path):
  path = saved(tmp_path, Image.new("1", (20_000, 9_500)))
  with pytest.raises(ImageError, match="190 megapixels; the limit is 189"):
    load_image_with_profile(path, pixels_max=189 * 10**6)


def test_an_image_that_claims_more_pixels_than_the_limit_is_refused_before_it_is_decoded(monkeypatch):
  """A JPEG of 631 bytes that says it has 4.3 gigapixels, as a whole, in part and by its header."""
  content = io.BytesIO()
  Image.new("RGB", (16, 16)).save(content, "JPEG")
  start = content.getvalue().index(b"\xff\xc0") + 5                    # height and width, in its frame header
  bomb = content.getvalue()[:start] + struct.pack(">HH", 65500, 65500) + content.getvalue()[start + 4:]
  monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels were decoded"))
  for read in load_image, read_header, decode, lambda file: decode(file, 8):
    with pytest.raises(ImageError, match="65500x65500, 4290 megapixels; the limit is 512"):
      read(io.BytesIO(bomb))


# --- color profiles -------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_a_profile_is_saved_and_loaded_again_byte_for_byte(tmp_path, extension):
  save_image(tmp_path / f"out.{extension}", RGB, SRGB)
  photograph = load_image_with_profile(tmp_path / f"out.{extension}")
  np.testing.assert_array_equal(photograph.image, RGB)
  assert photograph.icc_profile == SRGB


def test_a_jpeg_has_its_profile_read_and_a_bmp_is_written_without(tmp_path):
  photo = saved(tmp_path, Image.fromarray(RGB), "photo.jpg", icc_profile=SRGB)
  assert load_image_with_profile(photo).icc_profile == SRGB
  save_image(tmp_path / "out.bmp", RGB, SRGB)
  assert load_image_with_profile(tmp_path / "out.bmp").icc_profile is None


def test_a_profile_that_is_none_or_not_of_rgb_is_left_out(tmp_path):
  gray = SRGB[:16] + b"GRAY" + SRGB[20:]
  assert load_image_with_profile(saved(tmp_path, Image.fromarray(GRAY), icc_profile=gray)).icc_profile is None
  assert load_image_with_profile(saved(tmp_path, Image.fromarray(RGB), icc_profile=b"nonsense")).icc_profile is None
  assert load_image_with_profile(saved(tmp_path, Image.fromarray(RGB))).icc_profile is None


# --- in memory ----------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_level_and_255ths_come_back(dtype):
  levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  np.testing.assert_array_equal(to_loaded_image((levels / 255).astype(dtype)).image, levels)
  nearest = to_loaded_image(np.array([[[0.4, 0.6, 0.5]]]) / 255).image
  assert nearest.tolist() == [[[0, 1, 0]]] and nearest.dtype == np.uint8


@pytest.mark.parametrize("image, message", [
    (GRAY, r"got an image \(5, 7\) uint8; wanted \(H, W, 3\), uint8 or floats in \[0, 1\]"),
    (RGB.astype(int), "int64"), (RGB[..., :2], r"\(5, 7, 2\) uint8"), (RGB / 100, r"floats from 0\S* to 2\.\d+"),
    (np.full((2, 2, 3), np.nan), "floats from nan"), (Image.new("CMYK", (2, 2)), "^the image: color mode CMYK")])
def test_an_invalid_image_is_refused_in_one_line(image, message):
  with pytest.raises(ImageError, match=message) as error:
    to_loaded_image(image)
  assert "\n" not in str(error.value)


def test_an_image_is_read_as_pillow_opens_it(tmp_path):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  clear = Image.fromarray(np.dstack([RGB, GRAY]))
  for path in (saved(tmp_path, clear, icc_profile=profile), saved(tmp_path, Image.fromarray(GRAY), "gray.png")):
    with Image.open(path) as image:
      picture = to_loaded_image(image)
    wanted = load_image_with_profile(path)
    np.testing.assert_array_equal(picture.image, wanted.image)
    assert picture.icc_profile == wanted.icc_profile
  cut = tmp_path / "cut.png"
  cut.write_bytes(path.read_bytes()[:60])
  with pytest.raises(ImageError, match="^the image: cannot be read as an image"):
    to_loaded_image(Image.open(cut))


@pytest.mark.parametrize("header, values, expected", [
    (b"P6 2 1 255\n", bytes([0, 7, 255, 1, 2, 3]), [[0, 7, 255], [1, 2, 3]]),
    (b"P6 2 1 15\n", bytes([0, 7, 15, 1, 2, 3]), [[0, 119, 255], [17, 34, 51]]),
    (b"P5 2 1 255\n", bytes([9, 200]), [[9] * 3, [200] * 3]), (b"P2 2 1 255\n", b"9 200", [[9] * 3, [200] * 3]),
    (b"P4 2 1\n", b"\x40", [[255] * 3, [0] * 3])])
def test_ppm_pgm_and_pbm_are_read(header, values, expected):
  np.testing.assert_array_equal(load_image(io.BytesIO(header + values)), np.uint8([expected]))


@pytest.mark.parametrize("header, size, message", [
    (b"P6 2 1 65535\n", 12, "16 bits per channel"), (b"P6 2 1 1023\n", 12, "10 bits per channel"),
    (b"P5 2 1 65535\n", 4, "bits per channel"), (b"Pf 2 1 -1.0\n", 8, "32 bits per channel")])
def test_ppm_of_more_than_8_bits_is_refused(header, size, message):
  with pytest.raises(ImageError, match=message):
    load_image(io.BytesIO(header + bytes(size)))


def test_reading_holds_the_pixels_of_an_image_once():
  """Besides those that Pillow decodes, which are not counted here."""
  content = io.BytesIO()
  Image.new("RGB", (2000, 1500), (1, 2, 3)).save(content, "PNG")
  tracemalloc.start()
  try:
    image = load_image(content)
    assert tracemalloc.get_traced_memory()[1] < 1.6 * image.nbytes
  finally:
    tracemalloc.stop()
  assert image.shape == (1500, 2000, 3) and image.flags.writeable and (image == (1, 2, 3)).all()
