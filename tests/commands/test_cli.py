"""Tests of the command line: round trips, and one line with exit status 2 for user errors."""
import dataclasses
import functools
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import random_variables
from helpers.light_codec import LIGHT
from PIL import Image, ImageCms

from mlic_jax.__main__ import main
from mlic_jax.coding import bitstream, codec
from mlic_jax.coding.checkpoint_io import save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.tiled_format import TiledFile
from mlic_jax.data.image_io import load_image, load_image_with_profile, save_image
from mlic_jax.runtime import compile_progress

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
  """Reads each model directory once, because nothing changes one; coding/test_checkpoint_io.py tests the reading."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(codec, "load_model", functools.cache(codec.load_model))
    yield


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
  """The directory of a variable-rate model with three rate points, which compiles faster than that of other tests."""
  path, config = tmp_path_factory.mktemp("checkpoints") / "tiny", dataclasses.replace(LIGHT, contexts=())
  save_model(path, config, random_variables(config))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photograph, tiny_checkpoint):
  """Returns a folder with photo.png, photo.mlic at quality 2, and other files."""
  folder = tmp_path_factory.mktemp("cli")
  save_image(folder / "photo.png", photograph)
  assert run("encode", folder / "photo.png", folder / "photo.mlic", "--ckpt", tiny_checkpoint) == 0
  blob = (folder / "photo.mlic").read_bytes()
  (folder / "cut.mlic").write_bytes(blob[:-10])
  (folder / "altered.mlic").write_bytes(blob[:40] + b"?" + blob[41:])
  (folder / "text.mlic").write_text("some text")
  (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:100])
  Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
  return folder


def run(*arguments):
  """Runs a command with arguments of any type, and with the option for the transforms of tests."""
  arguments = [str(argument) for argument in arguments]
  return main([*arguments, *["--allow-custom-modules"] * ("--ckpt" in arguments)])


def test_decode_gives_the_image_that_the_codec_gives(folder, tiny_checkpoint, capsys):
  from mlic_jax import Codec
  assert run("decode", folder / "photo.mlic", folder / "out.png", "--ckpt", tiny_checkpoint) == 0
  assert "130x65" in capsys.readouterr().out
  decoded = Codec.load(tiny_checkpoint, allow_custom_modules=True).decode((folder / "photo.mlic").read_bytes())
  np.testing.assert_array_equal(load_image(folder / "out.png"), decoded)


def test_encode_reports_bytes_and_bpp_of_the_file(folder, tiny_checkpoint, capsys):
  assert run("encode", folder / "photo.png", folder / "again.mlic", "--ckpt", tiny_checkpoint, "--quality", 1.5) == 0
  size = (folder / "again.mlic").stat().st_size
  assert f"{size} bytes, {8 * size / (65 * 130):.4f} bpp" in capsys.readouterr().out


def test_info_says_what_a_file_holds(folder, capsys):
  assert run("info", folder / "photo.mlic") == 0
  out = capsys.readouterr().out
  assert "130x65" in out and re.search(r"quality +2\n", out) and re.search(r"checkpoint +[0-9a-f]{16}\n", out)


@pytest.mark.parametrize("arguments, message", [
    ("encode {f}/none.png {o}.mlic --ckpt {c}", "none.png"),
    ("encode {f}/broken.png {o}.mlic --ckpt {c}", "broken.png"),
    ("encode {f}/deep.png {o}.mlic --ckpt {c}", "16 bits"),
    ("encode {f}/photo.png {o}.mlic --ckpt {f}/nowhere", "nowhere: no such directory"),
    ("encode {f}/photo.png {o}.mlic --ckpt {f}", "config.json is missing"),
    ("encode {f}/photo.png {o}.mlic --ckpt {c} --quality 9", "quality 9.0; tiny has 1 to 3"),
    ("encode {f}/photo.png {o}.mlic --ckpt {c} --quality nan", "quality nan"),
    ("encode {f}/photo.png {f}/none/{o}.mlic --ckpt {c}", "No such file or directory"),
    ("decode {f}/none.mlic {o}.png --ckpt {c}", "none.mlic: No such file"),
    ("decode {f} {o}.png --ckpt {c}", "Is a directory"),
    ("decode {f}/cut.mlic {o}.png --ckpt {c}", "cut.mlic: the file is truncated"),
    ("decode {f}/altered.mlic {o}.png --ckpt {c}", "altered.mlic: the file is damaged"),
    ("decode {f}/text.mlic {o}.png --ckpt {c}", "not a .mlic file"),
    ("decode {f}/photo.mlic {o}.jpg --ckpt {c}", ".jpg without loss"),
    ("decode {f}/photo.mlic {o}.png --ckpt {f}/nowhere", "no such directory"),
    ("info {f}/cut.mlic", "truncated"),
])
def test_a_user_error_is_one_line_and_status_2_and_leaves_no_file(arguments, message, folder, tiny_checkpoint, capsys,
                                                                  monkeypatch):
  monkeypatch.setattr(Codec, "has_compiled", lambda *_: False)
  monkeypatch.setattr(compile_progress, "_read", dict)   # that compilers would be waited for is not said
  before = sorted(folder.rglob("*"))
  arguments = arguments.format(f=folder, c=tiny_checkpoint, o=folder / "out_of_error")
  assert run(*arguments.split()) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and message in err
  assert sorted(folder.rglob("*")) == before


def test_a_file_of_another_checkpoint_is_refused_with_both_fingerprints(folder, tiny_checkpoint, tmp_path, capsys,
                                                                        monkeypatch):
  monkeypatch.setattr(Codec, "has_compiled", lambda *_: False)
  monkeypatch.setattr(compile_progress, "_read", dict)
  from mlic_jax.coding.checkpoint_io import load_model
  model = load_model(tiny_checkpoint, allow_custom_modules=True)
  params = dict(model.variables["params"], log_gain=model.variables["params"]["log_gain"] + 1e-6)
  save_model(tmp_path / "other", model.config, {"params": params})
  assert run("decode", folder / "photo.mlic", tmp_path / "out.png", "--ckpt", tmp_path / "other") == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  assert model.fingerprint.hex() in err and load_model(tmp_path / "other", True).fingerprint.hex() in err
  assert not (tmp_path / "out.png").exists()


def test_the_command_answers_without_importing_jax_or_tensorflow(folder):
  code = ("import sys; from mlic_jax.__main__ import main; status = main(['info', sys.argv[1]]);"
          "assert not {'jax', 'tensorflow'} & set(sys.modules); sys.exit(status)")
  assert subprocess.run([sys.executable, "-c", code, str(folder / "photo.mlic")], capture_output=True).returncode == 0


# --- several files -----------------------------------------------------------------------

@pytest.fixture
def images(tmp_path, photograph):
  """images/: two images of one size, one of them with a color profile."""
  (tmp_path / "pictures" / "below").mkdir(parents=True)
  save_image(tmp_path / "pictures" / "a.png", photograph)
  save_image(tmp_path / "pictures" / "below" / "b.png", photograph[::-1], SRGB)
  return tmp_path / "pictures"


def test_folders_and_files_are_coded_into_a_folder(images, tmp_path, photograph, tiny_checkpoint, capsys):
  save_image(tmp_path / "c.png", photograph)
  here = tmp_path / "coded" / "here"
  assert run("encode", images, tmp_path / "c.png", "--ckpt", tiny_checkpoint, "--out-dir", here) == 0
  out, err = capsys.readouterr()
  assert "error" not in err
  assert [line.split(":")[0].split("/")[-1] for line in out.splitlines()] == ["a.mlic", "b.mlic", "c.mlic"]
  assert (here / "c.mlic").read_bytes() == (here / "a.mlic").read_bytes()
  assert run("decode", tmp_path / "coded", "--ckpt", tiny_checkpoint, "--out-dir", tmp_path / "decoded") == 0
  assert sorted(path.name for path in (tmp_path / "decoded").iterdir()) == ["a.png", "b.png", "c.png"]
  assert load_image_with_profile(tmp_path / "decoded/b.png").icc_profile == SRGB
  assert load_image_with_profile(tmp_path / "decoded/a.png").icc_profile is None


def test_a_file_that_fails_is_listed_at_the_end_and_the_others_are_coded(images, tmp_path, tiny_checkpoint, capsys):
  (images / "aa.png").write_bytes(b"no image")
  assert run("encode", images, images / "none.png", "--ckpt", tiny_checkpoint, "--out-dir", tmp_path / "coded") == 1
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == 2
  first, *failed = err.splitlines()
  assert first == "error: 2 of 4 files failed:" and len(failed) == 2
  assert "aa.png: cannot be read" in failed[0] and "none.png: no such file" in failed[1]
  assert sorted(path.name for path in (tmp_path / "coded").iterdir()) == ["a.mlic", "b.mlic"]

  (tmp_path / "coded/a.mlic").write_bytes((tmp_path / "coded/a.mlic").read_bytes()[:-1])
  assert run("decode", tmp_path / "coded", "--ckpt", tiny_checkpoint, "--out-dir", tmp_path / "decoded") == 1
  assert "a.mlic: the file is truncated" in capsys.readouterr().err
  assert [path.name for path in (tmp_path / "decoded").iterdir()] == ["b.png"]


@pytest.mark.parametrize("arguments, message", [
    ("encode {p} {p}/twin/a.png --ckpt {c} --out-dir {o}", "a.png and .*twin/a.png would both become .*out/a.mlic"),
    ("encode {p} --ckpt {c} --out-dir {o} --quality 7", "quality 7.0; tiny has 1 to 3"),
    ("encode {p} --ckpt {c}", "the command has 1 path; wanted IN and OUT"),
    ("encode {p}/a.png {p}/twin/a.png {o}.mlic --ckpt {c}", "the command has 3 paths"),
    ("encode --ckpt {c} --out-dir {o}", "the command has no paths"),
    ("encode {p}/empty --ckpt {c} --out-dir {o}", "empty: holds no image"),
    ("decode {p} --ckpt {c} --out-dir {o}", "holds no .mlic file"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} {c}", "--ckpt names 2 checkpoints; wanted one, or a --target option"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} --target-bytes 100", "wanted at most 100 bytes; tiny encodes"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} --target-psnr 90", "wanted at least 90 dB; tiny reaches"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} --max-megapixels 0", "a positive integer"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} --target-bpp nan", "a number above 0"),
    ("encode {p}/a.png {o}.mlic --ckpt {c} --target-bpp 1 --quality 2", "not allowed with"),
])
def test_what_cannot_work_for_any_file_is_said_before_anything_is_written(
    arguments, message, images, tmp_path, photograph, tiny_checkpoint, capsys):
  (images / "empty").mkdir()
  (images / "twin").mkdir()
  if "twin" in arguments:
    save_image(images / "twin" / "a.png", photograph)
  arguments = arguments.format(p=images, o=tmp_path / "out", c=tiny_checkpoint)
  assert run(*arguments.split()) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and re.search(message, err)
  assert not (tmp_path / "out.mlic").exists() and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_help_lists_the_arguments(command, capsys):
  with pytest.raises(SystemExit) as stop:
    run(command, "--help")
  assert stop.value.code == 0 and "--max-megapixels" in capsys.readouterr().out


# --- rate control, chunks, profiles ----------------------------------------------------------

def test_a_target_is_reached_and_what_was_reached_is_printed(folder, tmp_path, tiny_checkpoint, capsys):
  sizes = {}
  for quality in (1, 3):
    run("encode", folder / "photo.png", tmp_path / "out.mlic", "--ckpt", tiny_checkpoint, "--quality", quality)
    sizes[quality] = (tmp_path / "out.mlic").stat().st_size
  target = sum(sizes.values()) // 2
  command = "encode", folder / "photo.png", tmp_path / "out.mlic", "--ckpt", tiny_checkpoint
  capsys.readouterr()
  assert run(*command, "--target-bytes", target) == 0
  size = (tmp_path / "out.mlic").stat().st_size
  assert 0.99 * target < size <= target
  out = capsys.readouterr().out
  quality = float(re.search(r"quality ([0-9.]+), ", out).group(1))
  assert f"{size} bytes" in out and 1 < quality < 3
  assert run(*command, "--target-bpp", 8 * target / (65 * 130)) == 0
  assert (tmp_path / "out.mlic").stat().st_size == size
  assert run(*command, "--quality", quality) == 0
  assert (tmp_path / "out.mlic").stat().st_size == size


def test_a_target_beyond_every_file_is_said_and_gives_the_last_file(folder, tmp_path, tiny_checkpoint, capsys):
  command = "encode", folder / "photo.png", tmp_path / "out.mlic", "--ckpt", tiny_checkpoint
  assert run(*command, "--target-bytes", 10**6) == 0
  size = (tmp_path / "out.mlic").stat().st_size
  assert capsys.readouterr().err.endswith("1000000 bytes is out of range of tiny for this image; "
                                          f"writing the largest file, with {size} bytes\n")
  assert run(*command, "--quality", 3) == 0
  assert (tmp_path / "out.mlic").stat().st_size == size


def test_of_checkpoints_one_that_reaches_a_target_is_named_and_found_again(folder, tmp_path, tiny_checkpoint, capsys):
  from mlic_jax.coding.checkpoint_io import load_model
  model = load_model(tiny_checkpoint, allow_custom_modules=True)
  params = dict(model.variables["params"], log_gain=model.variables["params"]["log_gain"] - 1)
  save_model(tmp_path / "coarse", model.config, {"params": params})
  ckpts = "--ckpt", tiny_checkpoint, tmp_path / "coarse"
  run("encode", folder / "photo.png", tmp_path / "out.mlic", "--ckpt", tiny_checkpoint, "--quality", 1)
  smallest = (tmp_path / "out.mlic").stat().st_size     # but for some bytes: see encode_to_bytes
  capsys.readouterr()
  assert run("encode", folder / "photo.png", tmp_path / "out.mlic", *ckpts, "--target-bytes", smallest - 20) == 0
  assert "coarse, quality " in capsys.readouterr().out
  assert run("decode", tmp_path / "out.mlic", tmp_path / "out.png", *ckpts) == 0
  assert load_image(tmp_path / "out.png").shape == (65, 130, 3)


def test_slices_and_partial_give_what_the_codec_gives_and_say_so(folder, tmp_path, tiny_checkpoint, capsys):
  from mlic_jax import Codec
  codec, blob = Codec.load(tiny_checkpoint, allow_custom_modules=True), (folder / "photo.mlic").read_bytes()
  assert run("decode", folder / "photo.mlic", tmp_path / "one.png", "--ckpt", tiny_checkpoint, "--slices", 1) == 0
  assert "1 of 2 slices" in capsys.readouterr().out
  np.testing.assert_array_equal(load_image(tmp_path / "one.png"), codec.decode(blob, slices=1))
  assert run("decode", folder / "cut.mlic", tmp_path / "cut.png", "--ckpt", tiny_checkpoint, "--partial") == 0
  assert "1 of 2 slices" in capsys.readouterr().out
  np.testing.assert_array_equal(load_image(tmp_path / "cut.png"), load_image(tmp_path / "one.png"))
  assert run("decode", folder / "photo.mlic", tmp_path / "out.png", "--ckpt", tiny_checkpoint, "--slices", 3) == 2
  assert "slices=3; wanted an integer from 0 to 2" in capsys.readouterr().err


def test_a_profile_is_carried_to_the_image_unless_it_is_left_out(images, tmp_path, tiny_checkpoint, capsys):
  coded, decoded = tmp_path / "b.mlic", tmp_path / "b.png"
  source = images / "below/b.png"
  for options, profile, line in [([], SRGB, f"ICC, {len(SRGB)} bytes"), (["--no-icc"], None, "none"),
                                 (["--single-chunk"], SRGB, "2, in one chunk")]:
    assert run("encode", source, coded, "--ckpt", tiny_checkpoint, *options) == 0
    assert run("info", coded) == 0
    assert line in capsys.readouterr().out
    assert run("decode", coded, decoded, "--ckpt", tiny_checkpoint) == 0
    assert load_image_with_profile(decoded).icc_profile == profile


def test_the_limit_of_pixels_is_that_of_the_flag(tmp_path, capsys):
  content = bitstream.Bitstream(b"8 bytes.", 1000, 2001, 1.0, 1, (b"", b""))
  (tmp_path / "large.mlic").write_bytes(bitstream.write(content))
  assert run("info", tmp_path / "large.mlic", "--max-megapixels", 2) == 2
  assert "is 1000x2001, 2 megapixels; the limit is 2" in capsys.readouterr().err
  assert run("info", tmp_path / "large.mlic", "--max-megapixels", 3) == 0


def test_a_file_is_read_no_further_than_its_header_when_that_is_none():
  assert run("info", "/dev/zero") == 2


@pytest.fixture(scope="module")
def tiled(folder, tiny_checkpoint):
  """photo.png in 2x3 tiles of 64 pixels, and the image that it decodes to."""
  assert run("encode", folder / "photo.png", folder / "tiled.mlic", "--ckpt", tiny_checkpoint, "--tile", 64) == 0
  assert run("decode", folder / "tiled.mlic", folder / "tiled.png", "--ckpt", tiny_checkpoint) == 0
  return folder / "tiled.mlic", load_image(folder / "tiled.png")


def test_a_region_of_a_tiled_file_has_the_pixels_of_the_image(folder, tiny_checkpoint, tiled, capsys):
  path, image = tiled
  out = folder / "region.png"
  assert run("decode", path, out, "--ckpt", tiny_checkpoint, "--region", "100,5,30,60") == 0
  assert "region.png: 30x60" in capsys.readouterr().out
  assert np.abs(load_image(out).astype(int) - image[5:65, 100:130]).max() <= 1
  assert run("info", path) == 0
  assert re.search(r"tiles +2 rows of 3, of 64x64 pixels\n", capsys.readouterr().out)


@pytest.mark.parametrize("region, message", [
    ("100,5,31,60", "the region has 31x60 pixels at 100,5; the image has 130x65"),
    ("1,2,3", "'1,2,3'; wanted column, row, width and height"), ("0,0,0,5", "wanted column, row")])
def test_a_region_that_is_not_there_is_one_line(folder, tiny_checkpoint, tiled, region, message, capsys):
  assert run("decode", tiled[0], folder / "no.png", "--ckpt", tiny_checkpoint, "--region", region) == 2
  line, = capsys.readouterr().err.splitlines()
  assert message in line and not (folder / "no.png").exists()


def test_tiles_are_encoded_from_strips_of_the_file(folder, tiny_checkpoint, tiled, photograph, monkeypatch, capsys):
  from mlic_jax.commands import encode
  whole = []
  load = encode.load_image_with_profile
  monkeypatch.setattr(encode, "load_image_with_profile", lambda *arguments: whole.append(1) or load(*arguments))
  Image.fromarray(photograph).save(folder / "profile.tif", icc_profile=SRGB)
  profile = lambda path: TiledFile(path.read_bytes()).content.icc_profile
  out = folder / "strips.mlic"
  files = ("photo.png", [], None), ("profile.tif", [], SRGB), ("profile.tif", ["--no-icc"], None)
  for name, options, expected in files:
    assert run("encode", folder / name, out, "--ckpt", tiny_checkpoint, "--tile", 64, *options) == 0
    assert not whole and profile(out) == expected
  assert run("encode", folder / "photo.png", out, "--ckpt", tiny_checkpoint, "--tile", 64) == 0
  assert out.read_bytes() == tiled[0].read_bytes()
  broken = (folder / "photo.png").read_bytes()
  (folder / "late.png").write_bytes(broken[:len(broken) // 2])
  out.unlink()
  capsys.readouterr()
  assert run("encode", folder / "late.png", out, "--ckpt", tiny_checkpoint, "--tile", 64) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "late.png" in error and "truncated" in error and not whole and not out.exists()
  assert run("encode", folder / "photo.png", out, "--ckpt", tiny_checkpoint, "--tile", 0) == 0 and whole


def test_a_batch_of_tiles_makes_a_file_that_any_decoder_reads(folder, tiny_checkpoint, tiled):
  path, image = tiled
  batched, out = folder / "batched.mlic", folder / "batched.png"
  arguments = "--ckpt", tiny_checkpoint, "--tile-batch"
  assert run("encode", folder / "photo.png", batched, *arguments, 4, "--tile", 64) == 0
  assert run("decode", batched, out, *arguments, 1) == 0
  assert np.abs(load_image(out).astype(int) - image).max() <= 1


def test_partial_names_the_missing_tiles_of_a_file_and_decodes_the_others(folder, tiny_checkpoint, tiled, capsys):
  path, image = tiled
  cut, out = folder / "cut_tiles.mlic", folder / "partial.png"
  cut.write_bytes(path.read_bytes()[:-20])
  assert run("decode", cut, out, "--ckpt", tiny_checkpoint) == 2
  assert "tile 6 of 6 (row 2, column 3) is incomplete" in capsys.readouterr().err
  assert run("decode", cut, out, "--ckpt", tiny_checkpoint, "--partial") == 0
  assert "cut_tiles.mlic: tile 6 of 6 (row 2, column 3)" in capsys.readouterr().err
  assert load_image(out).shape == image.shape
