"""The command line: a round trip, and one line with exit status 2 for everything that a user can get wrong."""
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.images import load_image, save_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photograph, tiny_checkpoint):
  """photo.png, photo.mlic at quality 2, and what else may be lying about."""
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
  return main([str(a) for a in arguments])


def test_decode_gives_the_picture_that_the_codec_gives(folder, tiny_checkpoint, capsys):
  from mlic_jax import Codec
  assert run("decode", folder / "photo.mlic", folder / "out.png", "--ckpt", tiny_checkpoint) == 0
  assert "130x65" in capsys.readouterr().out
  decoded = Codec.load(tiny_checkpoint).decode((folder / "photo.mlic").read_bytes())
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
    ("encode {f}/photo.png {o}.mlic --ckpt {c} --quality 9", "quality 9.0 came, tiny has 1 to 3"),
    ("encode {f}/photo.png {o}.mlic --ckpt {c} --quality nan", "quality nan"),
    ("encode {f}/photo.png {f}/none/{o}.mlic --ckpt {c}", "No such file or directory"),
    ("decode {f}/none.mlic {o}.png --ckpt {c}", "none.mlic: No such file"),
    ("decode {f} {o}.png --ckpt {c}", "Is a directory"),
    ("decode {f}/cut.mlic {o}.png --ckpt {c}", "cut.mlic: the file is cut short"),
    ("decode {f}/altered.mlic {o}.png --ckpt {c}", "altered.mlic: the file is damaged"),
    ("decode {f}/text.mlic {o}.png --ckpt {c}", "not a .mlic file"),
    ("decode {f}/photo.mlic {o}.jpg --ckpt {c}", ".jpg without loss"),
    ("decode {f}/photo.mlic {o}.png --ckpt {f}/nowhere", "no such directory"),
    ("info {f}/cut.mlic", "cut short"),
])
def test_a_user_error_is_one_line_and_status_2_and_leaves_no_file(arguments, message, folder, tiny_checkpoint, capsys):
  before = sorted(folder.rglob("*"))
  arguments = arguments.format(f=folder, c=tiny_checkpoint, o=folder / "out_of_error")
  assert run(*arguments.split()) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and message in err
  assert sorted(folder.rglob("*")) == before


def test_a_file_of_another_checkpoint_is_refused_with_both_fingerprints(folder, tiny_checkpoint, tmp_path, capsys):
  from mlic_jax.checkpoint import load_model, save_model
  model = load_model(tiny_checkpoint)
  params = dict(model.variables["params"], log_gain=model.variables["params"]["log_gain"] + 1e-6)
  save_model(tmp_path / "other", model.config, {"params": params})
  assert run("decode", folder / "photo.mlic", tmp_path / "out.png", "--ckpt", tmp_path / "other") == 2
  err = capsys.readouterr().err
  assert model.fingerprint.hex() in err and load_model(tmp_path / "other").fingerprint.hex() in err
  assert not (tmp_path / "out.png").exists()


def test_the_command_answers_without_importing_jax_or_tensorflow(folder):
  code = ("import sys; from mlic_jax.__main__ import main; status = main(['info', sys.argv[1]]);"
          "assert not {'jax', 'tensorflow'} & set(sys.modules); sys.exit(status)")
  assert subprocess.run([sys.executable, "-c", code, str(folder / "photo.mlic")], capture_output=True).returncode == 0
