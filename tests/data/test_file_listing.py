"""Tests of file lists: every wanted file is read or reported."""
import os

import numpy as np
import pytest
from helpers.empty_codec import EmptyCodec
from PIL import Image

import mlic_jax.data.pillow_decode as pillow_decode
from mlic_jax.__main__ import main
from mlic_jax.commands import decode, encode
from mlic_jax.data import sources
from mlic_jax.data.file_listing import list_files
from mlic_jax.data.image_io import HEIC_NOT_READ, ImageError, encode_lossless, list_images, load_image
from mlic_jax.evaluation import dataset

IMAGE = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)


@pytest.fixture(name="album")
def album_with_gaps(tmp_path):
  """An image, and beside it two links of a disk that is not mounted, a GIF, a pipe, and a text."""
  album = tmp_path / "album"
  (album / "below").mkdir(parents=True)
  (album / "below" / "a.png").write_bytes(encode_lossless("a.png", IMAGE))
  (album / "b.png").symlink_to("/mnt/not_mounted/b.png")
  (album / "below" / "2019").symlink_to("/mnt/not_mounted")
  (album / "c.gif").touch()
  (album / "notes.txt").touch()
  os.mkfifo(album / "pipe.png")
  os.mkfifo(album / "pipe")
  return album


SUMMARY = ("left out 4 files (.gif, which is not read: c.gif; broken links: b.png, below/2019; "
           "pipes, sockets or devices: pipe.png)")


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch):
  for command in encode, decode:
    monkeypatch.setattr(command, "load_codecs", lambda *_, **__: [EmptyCodec()])


def test_files_left_out_of_a_folder_are_counted_and_named_with_the_reasons(album):
  said = []
  assert list_images(album, said.append) == [album / "below" / "a.png"] and said == [f"{album}: {SUMMARY}"]


def test_a_link_in_a_circle_leads_nowhere(tmp_path):
  (tmp_path / "self.png").symlink_to("self.png")
  assert list_files(tmp_path, lambda name: True).left_out == {"broken links": ["self.png"]}


def test_a_complete_folder_is_listed_without_a_word(tmp_path):
  for name in "a.jfif", "b.JPE", "c.jif", "d.jpg", ".hidden.gif", "notes.txt":
    (tmp_path / name).touch()
  said = []
  assert [path.name for path in list_images(tmp_path, said.append)] == ["a.jfif", "b.JPE", "c.jif", "d.jpg"]
  assert not said


def test_many_names_are_counted_and_three_are_shown(tmp_path):
  for i in range(5):
    (tmp_path / f"{i}\n.gif").touch()
  message = r"holds no image, left out 5 files \(.gif, .*: 0\\n.gif, 1\\n.gif, 2\\n.gif and 2 more\)"
  with pytest.raises(ImageError, match=message):
    list_images(tmp_path)


def test_encoding_a_folder_with_gaps_names_them_and_ends_with_status_1(album, tmp_path, capsys):
  assert main(["encode", str(album), "--ckpt", "x", "--out-dir", str(tmp_path / "out")]) == 1
  assert capsys.readouterr().err == f"error: {album}: {SUMMARY}\n"
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mlic"]
  (tmp_path / "out" / "gone.mlic").symlink_to("/mnt/not_mounted/gone.mlic")
  assert main(["decode", str(tmp_path / "out"), "--ckpt", "x", "--out-dir", str(tmp_path / "decoded")]) == 1
  assert capsys.readouterr().err == (f"error: {tmp_path / 'out'}: left out 1 file (broken links: "
                                     "gone.mlic)\n")


def test_a_folder_with_nothing_but_gaps_is_refused_with_them(tmp_path, capsys):
  (tmp_path / "a.png").symlink_to("/mnt/not_mounted/a.png")
  assert main(["encode", str(tmp_path), "--ckpt", "x", "--out-dir", str(tmp_path / "out")]) == 2
  assert "holds no image, left out 1 file (broken links: a.png); wanted files" in capsys.readouterr().err


def test_evaluation_and_training_name_the_gaps(album, caplog):
  said = []
  assert dataset.open_dataset(str(album), warn=said.append).size == 1 and said == [f"{album}: {SUMMARY}"]
  assert len(sources.open_sources(str(album), "")[0].source) == 1 and caplog.messages == said


# --- HEIC ----------------------------------------------------------------------------

def heic(bits=8, **options) -> bytes:
  pillow_heif = pytest.importorskip("pillow_heif")
  import io
  file = io.BytesIO()
  if bits == 8:
    pillow_heif.register_heif_opener()
    Image.fromarray(IMAGE.repeat(4, 0).repeat(4, 1)).save(file, "HEIF", quality=90, **options)
  else:
    pixels = np.zeros((48, 80, 3), np.uint16)
    pillow_heif.from_bytes("RGB;16", (80, 48), pixels.tobytes()).save(file, **options)
  return file.getvalue()


def test_heic_is_read_where_its_package_is_installed_whatever_it_is_called(tmp_path):
  for name in "a.heic", "b.HEIF", "phone.jpg":
    (tmp_path / name).write_bytes(heic())
  said = []
  paths = list_images(tmp_path, said.append)
  assert len(paths) == 3 and not said
  for path in paths:
    assert load_image(path).shape == (48, 80, 3)


def test_without_its_package_heic_is_named_with_the_package(tmp_path, monkeypatch):
  content = heic()
  monkeypatch.setattr(pillow_decode.importlib.util, "find_spec", lambda name: None)
  pillow_decode.reads_heic.cache_clear()
  try:
    for name in "a.heic", "phone.jpg":
      (tmp_path / name).write_bytes(content)
    said = []
    assert list_images(tmp_path, said.append) == [tmp_path / "phone.jpg"]
    assert said == [f"{tmp_path}: left out 1 file ({HEIC_NOT_READ}: a.heic)"]
    with pytest.raises(ImageError, match="phone.jpg: HEIC, which needs pip install pillow-heif"):
      load_image(tmp_path / "phone.jpg")
  finally:
    pillow_decode.reads_heic.cache_clear()


def test_heic_of_10_bits_is_refused_and_other_colors_are_named(tmp_path):
  (tmp_path / "deep.heic").write_bytes(heic(10))
  with pytest.raises(ImageError, match="10 bits per channel"):
    load_image(tmp_path / "deep.heic")
  for primaries, said in ((1, ""), (12, "nclx")):         # 12: Display P3
    with pillow_decode.open_image(_written(tmp_path, primaries)) as image:
      assert pillow_decode.describe_other_color(image) == said


def _written(folder, primaries):
  (folder / "p.heic").write_bytes(heic(color_primaries=primaries, transfer_characteristics=13, matrix_coefficients=6,
                                       full_range_flag=1, save_nclx_profile=True))
  return folder / "p.heic"
