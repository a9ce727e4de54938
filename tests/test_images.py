"""Reading and writing photographs: what becomes RGB, and what is refused, in one line that names the file."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mlic_jax.images import ImageError, list_images, load_image, save_image

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (5, 7, 3), np.uint8)
GREY = rng.integers(0, 256, (5, 7), np.uint8)


def saved(folder, image, name="photo.png", **options):
  image.save(folder / name, **options)
  return folder / name


def png_16_bit(colour_type, channels):
  """A PNG of 2x2 pixels with 16 bits a channel, which Pillow reads as 8-bit RGB but cannot write."""
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  rows = (b"\0" + bytes(range(4 * channels))) * 2
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_rgb_comes_back_as_it_was(tmp_path):
  np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_greyscale_and_one_bit_are_repeated_over_the_channels(tmp_path):
  np.testing.assert_array_equal(load_image(saved(tmp_path, Image.fromarray(GREY))), np.stack([GREY] * 3, -1))
  bits = GREY > 127
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
  la = load_image(saved(tmp_path, Image.fromarray(np.concatenate([GREY[..., None], alpha], -1))))
  np.testing.assert_array_equal(la[2:, :, 0], GREY[2:])
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


@pytest.mark.parametrize("colour_type, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_refused(tmp_path, colour_type, channels):
  (tmp_path / "deep.png").write_bytes(png_16_bit(colour_type, channels))
  with pytest.raises(ImageError, match="deep.png: 16 bits per channel; wanted an 8-bit"):
    load_image(tmp_path / "deep.png")


def test_sixteen_bit_and_float_tiff_are_refused(tmp_path):
  with pytest.raises(ImageError, match="16 bits"):
    load_image(saved(tmp_path, Image.fromarray(GREY.astype(np.uint16)), "deep.tif"))
  with pytest.raises(ImageError, match="32 bits"):
    load_image(saved(tmp_path, Image.fromarray(GREY.astype(np.float32)), "float.tif"))


def test_cmyk_is_refused(tmp_path):
  with pytest.raises(ImageError, match="ink.jpg: colour mode CMYK; wanted an 8-bit RGB"):
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
    save_image(tmp_path / "out.png", GREY)
  assert not list(tmp_path.iterdir())
