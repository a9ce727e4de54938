"""Tests of hundreds of unusual files in all readers of images: correct pixels or one line, never a traceback.

The files are generated: layouts of PNG and TIFF, bitmaps, odd metadata, wrong endings, files that were cut or damaged.
"""
import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from helpers.empty_codec import EmptyCodec
from helpers.fake_codec import FakeCodec
from PIL import Image
from test_edge_cases_images import ODD_EXIF, bmp, exif, with_exif

import mlic_jax
from mlic_jax.__main__ import main, main_of_one_command
from mlic_jax.coding import bitstream
from mlic_jax.commands import encode
from mlic_jax.data.image_io import ImageError
from mlic_jax.data.image_source import LazyImages
from mlic_jax.data.sources import Folder
from tools.image_formats import png, png_cases, tiff, tiff_cases

SMOOTH = np.uint8(np.mgrid[:16, :24].sum(0)[..., None] * np.array([5, 6, 4]))
REFUSED, ANYTHING = "refused", "anything but a traceback"
TURNS = (lambda x: x, lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1, ::-1], lambda x: x[::-1],
         lambda x: x.swapaxes(0, 1), lambda x: np.rot90(x, -1), lambda x: np.rot90(x, -1)[::-1], np.rot90)


class OddFile(NamedTuple):
  name: str
  content: bytes
  wanted: object       # (H, W, 3) to be read, or REFUSED, or either of them; or ANYTHING
  tolerance: float = 1.5
  may_be_refused: bool = False


def odd_files() -> Iterator[OddFile]:
  """Some two thousand."""
  for i, case in enumerate(itertools.chain(png_cases(), tiff_cases())):
    wanted = REFUSED if case.image is None else case.image
    yield OddFile(f"{case.kind}, {case.samples}, {i}.{('png', 'tif')['TIFF' in case.kind]}", case.content, wanted,
                  may_be_refused=True)
  for image_format, suffix, tolerance in ("JPEG", "jpg", 16), ("PNG", "png", 0), ("WEBP", "webp", 0):
    for (name, block), orientation in itertools.product(ODD_EXIF.items(), range(9)):
      block = block.replace(exif()[10:22], exif(orientation=orientation)[10:22])
      yield OddFile(f"{name}, turned {orientation}.{suffix}".replace("/", ":"),
                    with_exif(SMOOTH, block, image_format).getvalue(), TURNS[orientation](SMOOTH), tolerance)
    for i, block in enumerate((b"", b"nonsense", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff")):
      yield OddFile(f"broken exif {i}.{suffix}", with_exif(SMOOTH, block, image_format).getvalue(), SMOOTH, tolerance)
  for alpha in 0, 255:
    pixels = SMOOTH.astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32) | np.uint32(alpha << 24)
    for header in 108, 124:
      yield OddFile(f"alpha {alpha} of {header}.bmp",
                    bmp(pixels.astype(np.uint32), (0xff0000, 0xff00, 0xff, 0xff000000), header), SMOOTH)
  whole = {suffix: saved(image_format) for suffix, image_format in (
      ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF"))}
  whole["gif"] = saved("GIF")
  for (ending, (suffix, content)) in itertools.product(("jpg", "png", "webp", "bmp", "tif", "PNG"), whole.items()):
    yield OddFile(f"in truth a {suffix}.{ending}", content, REFUSED if suffix == "gif" else SMOOTH, 16)
  rng = np.random.default_rng(0)
  for suffix, content in whole.items():
    if suffix == "gif":
      continue
    for part in 0, 1, 2, 3, 7, 10, 13:
      yield OddFile(f"{part} of 20 parts.{suffix}", content[:len(content) * part // 20], REFUSED)
    for i in range(30):
      damaged = bytearray(content)
      for place in rng.integers(0, min(len(content), 10**(1 + i % 4)), 1 + i % 5):
        damaged[place] = rng.integers(256)
      yield OddFile(f"damaged {i}.{suffix}", bytes(damaged), ANYTHING)
  for i, chunks in enumerate(([(b"gAMA", b"")], [(b"tRNS", b"")], [(b"PLTE", bytes(7))], [(b"iCCP", b"x")],
                              [(b"cHRM", b"12")], [(b"eXIf", b"II")], [(b"pHYs", bytes(9))])):
    yield OddFile(f"chunk {i}.png", png(SMOOTH, 2, 8, chunks=chunks), SMOOTH, may_be_refused=True)
  for i, tags in enumerate(({277: (3, [200])}, {258: (3, [8])}, {278: (4, [0])}, {259: (3, [7])}, {256: (4, [2**31])},
                            {257: (4, [0])}, {273: (4, [2**30])}, {339: (3, [6, 6, 6])}, {284: (3, [9])})):
    yield OddFile(f"tag {i}.tif", tiff(SMOOTH, 2, tags=tags), ANYTHING)
  for i, content in enumerate((b"", b"\0" * 1000, b"RIFF" + bytes(40), b"BM" + bytes(50), b"II*\0" + bytes(4),
                               b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"MM\0*\0\0\0\x08\0\0", "ÿØÿà".encode())):
    yield OddFile(f"nothing {i}.jpg", content, REFUSED)


def saved(image_format):
  content = io.BytesIO()
  options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "TIFF": {"compression": "tiff_lzw"}}
  Image.fromarray(SMOOTH).save(content, image_format, **options.get(image_format, {}))
  return content.getvalue()


def check(file: OddFile, image: np.ndarray | None) -> None:
  """`image` is what was read of it, or None when it was refused."""
  if isinstance(file.wanted, str):
    assert file.wanted == ANYTHING or image is None, f"{file.name} was read"
  elif image is None:
    assert file.may_be_refused, f"{file.name} was refused"
  else:
    assert image.shape == file.wanted.shape and np.abs(image - file.wanted.astype(float)).max() <= file.tolerance, \
        f"{file.name} is another picture"


class Keeping(EmptyCodec):
  """A stand-in whose files hold the pixels."""

  def encode(self, image, quality=None, icc_profile=None, chunked=True, portable=True):
    return bitstream.write(bitstream.Bitstream(self.fingerprint, *image.shape[:2], 1.0, 1, (b"z", image.tobytes())))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_odd_files_are_read_rightly_or_refused_in_one_line_by_encode_eval_and_training(
    count, tmp_path, monkeypatch, capsys):
  files = list(odd_files())
  files = [files[i * len(files) // count] for i in range(count)] if count < len(files) else files
  for place in "all", "good":
    (tmp_path / place).mkdir()
  paths = {file.name: tmp_path / "all" / file.name for file in files}
  for file in files:
    paths[file.name].write_bytes(file.content)

  monkeypatch.setattr(encode, "load_codecs", lambda *_: [Keeping()])
  outputs = {file.name: tmp_path / "coded" / f"{i}.mlic" for i, file in enumerate(files)}
  (tmp_path / "coded").mkdir()
  good = []
  for file in files:
    status = main(["encode", str(paths[file.name]), str(outputs[file.name]), "--ckpt", "x"])
    out, err = capsys.readouterr()
    image = None
    if status:
      assert status == 2 and err.count("\n") == 1 and err.startswith("error: ") and file.name in err
    else:
      content = bitstream.parse(outputs[file.name].read_bytes())
      image = np.frombuffer(content.chunks[1], np.uint8).reshape(content.height, content.width, 3)
      good.append(file)
    check(file, image)

  photographs = LazyImages(Folder("all", list(paths.values())))
  for i, file in enumerate(files):
    try:
      image = photographs[i].decode()
    except ImageError as error:
      assert "\n" not in str(error)
      image = None
    check(file, image)
    assert (image is None) == (not outputs[file.name].exists()), file.name

  monkeypatch.setitem(vars(mlic_jax), "Codec", FakeCodec)
  options = ["--ckpt", "x", "--qualities", "1", "--baselines", "none", "--estimate", "--report-images", "0"]
  evaluate = lambda folder: main_of_one_command(
      "eval", "eval.py", [*options, "--data", str(tmp_path / folder), "--out", str(tmp_path / "out")])
  assert evaluate("all") == 2
  assert capsys.readouterr().err.count("\n") == 1
  for file in good:
    (tmp_path / "good" / file.name).write_bytes(file.content)
  assert evaluate("good") == 0
  assert not capsys.readouterr().err
