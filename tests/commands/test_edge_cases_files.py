"""Tests of the command line with unusual files: names, existing outputs, pipes, devices, closed terminals.

The codec is a stand-in that stores the size of an image, so that nothing is compiled.
"""
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import tty
from pathlib import Path

import numpy as np
import pytest
from helpers.empty_codec import EmptyCodec
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.coding import bitstream
from mlic_jax.commands import decode, encode
from mlic_jax.console import printable
from mlic_jax.data.image_io import FORMATS, encode_lossless, load_image, save_image

IMAGE = np.uint8(np.mgrid[:12, :20].sum(0)[..., None] * np.array([8, 4, 2]))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
  for command in encode, decode:
    monkeypatch.setattr(command, "load_codecs", lambda *_: [EmptyCodec()])


@pytest.fixture(name="photo")
def photograph(tmp_path):
  save_image(tmp_path / "photo.png", IMAGE)
  return tmp_path / "photo.png"


def run(*arguments):
  return main([*map(str, arguments), "--ckpt", "x"] if arguments[0] != "info" else [*map(str, arguments)])


def refused(message, capsys, *arguments):
  """Whether a command reports `message` in one line, with exit status 2."""
  capsys.readouterr()
  assert run(*arguments) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and message in err, err
  return True


def is_mlic(path):
  return bitstream.parse(Path(path).read_bytes()).width == 20


# --- what is there -------------------------------------------------------------------

def test_an_image_is_not_replaced_by_its_own_file_under_any_of_its_names(photo, tmp_path, capsys):
  content = photo.read_bytes()
  (tmp_path / "link").symlink_to(photo)
  (tmp_path / "hard").hardlink_to(photo)
  (tmp_path / "photo").write_bytes(content)
  for source, target in ((photo, tmp_path / "link"), (photo, tmp_path / "hard"), (tmp_path / "link", tmp_path / "hard"),
                         (tmp_path / "photo", tmp_path / "photo")):
    assert refused("is an input; wanted another file for the output", capsys, "encode", source, target)
  (tmp_path / "photo.mlic").symlink_to(photo)            # in a folder to write to
  assert refused("is an input", capsys, "encode", photo, "--out-dir", tmp_path, "--overwrite")
  assert photo.read_bytes() == (tmp_path / "photo").read_bytes() == content


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.avif", "out.txt", "out.zip", "out.webp"])
def test_encode_writes_no_file_whose_ending_says_another_format(name, photo, tmp_path, capsys):
  (tmp_path / name).write_bytes(b"an image of somebody")
  assert refused("the output is a .mlic file, but the name ends in", capsys, "encode", photo, tmp_path / name)
  assert (tmp_path / name).read_bytes() == b"an image of somebody"


def test_a_file_that_was_named_is_replaced_and_keeps_who_may_read_it(photo, tmp_path, capsys):
  for name in "out.mlic", "out", "out.coded":
    (tmp_path / name).write_bytes(b"old")
    (tmp_path / name).chmod(0o600)
    assert run("encode", photo, tmp_path / name) == 0
    assert is_mlic(tmp_path / name) and stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_in_a_folder_only_overwrite_replaces_what_is_there_and_the_rest_is_coded(photo, tmp_path, capsys):
  save_image(tmp_path / "b.png", IMAGE)
  assert run("encode", photo, "--out-dir", tmp_path / "coded") == 0
  assert run("encode", tmp_path / "b.png", "--out-dir", tmp_path / "coded") == 0
  (tmp_path / "decoded").mkdir()
  save_image(tmp_path / "decoded" / "photo.png", IMAGE)
  original = (tmp_path / "decoded" / "photo.png").read_bytes()
  assert run("decode", tmp_path / "coded", "--out-dir", tmp_path / "decoded") == 1
  assert "decoded/photo.png already exists; --overwrite replaces it" in capsys.readouterr().err
  assert (tmp_path / "decoded" / "photo.png").read_bytes() == original and (tmp_path / "decoded" / "b.png").exists()
  assert run("decode", tmp_path / "coded", "--out-dir", tmp_path / "decoded", "--overwrite") == 0
  assert not load_image(tmp_path / "decoded" / "photo.png").any()


def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(photo, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(EmptyCodec, "encode", lambda *_, **__: pytest.fail("work was begun"))
  (tmp_path / "here").mkdir()
  assert refused("here: Is a directory", capsys, "encode", photo, tmp_path / "here")
  assert refused("No such file or directory", capsys, "encode", photo, tmp_path / "gone" / "out.mlic")


# --- links, pipes, devices -----------------------------------------------------------

def test_a_link_is_followed_and_stays(photo, tmp_path, capsys):
  (tmp_path / "there").mkdir()
  (tmp_path / "out.mlic").symlink_to(tmp_path / "there" / "real.mlic")   # which does not exist yet
  for _ in range(2):
    assert run("encode", photo, tmp_path / "out.mlic") == 0
    assert (tmp_path / "out.mlic").is_symlink() and is_mlic(tmp_path / "there" / "real.mlic")
  assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.mlic"]
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  assert refused("loop: Too many levels of symbolic links", capsys, "encode", photo, tmp_path / "loop")


def test_a_pipe_gets_the_file_and_stays_a_pipe(photo, tmp_path, capsys):
  os.mkfifo(tmp_path / "pipe")
  received = []
  reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
  reader.start()
  assert run("encode", photo, tmp_path / "pipe") == 0
  reader.join(60)
  assert bitstream.parse(received[0]).width == 20 and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
  out, err = capsys.readouterr()
  assert not out and "pipe: " in err                     # the pipe may be stdout


def test_a_device_is_written_to_and_not_replaced(photo, capsys):
  reading, terminal = os.openpty()   # a device of its own: what replaces it does no harm
  tty.setraw(terminal)
  assert run("encode", photo, os.ttyname(terminal)) == 0
  assert stat.S_ISCHR(os.stat(os.ttyname(terminal)).st_mode)
  assert bitstream.parse(os.read(reading, 1000)).width == 20
  assert refused("/dev/full: No space left on device", capsys, "encode", photo, "/dev/full")


def test_an_image_is_read_from_a_pipe(photo, tmp_path, capsys):
  os.mkfifo(tmp_path / "pipe")
  writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(photo.read_bytes()))
  writer.start()
  assert run("encode", tmp_path / "pipe", tmp_path / "out.mlic") == 0
  writer.join(60)
  assert is_mlic(tmp_path / "out.mlic")


def test_a_stream_that_is_no_image_is_not_read_to_its_end(tmp_path, capsys):
  assert refused("/dev/zero: cannot be read as an image", capsys, "encode", "/dev/zero", tmp_path / "out.mlic")


class Streams:
  """stdin and stdout as bytes."""

  def __init__(self, monkeypatch, content):
    self.out = io.BytesIO()
    self.out.close = lambda: None
    for name, buffer in ("stdin", io.BytesIO(content)), ("stdout", self.out):
      monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer))


def test_a_dash_is_stdin_and_stdout(photo, tmp_path, monkeypatch):
  streams = Streams(monkeypatch, photo.read_bytes())
  assert run("encode", "-", "-") == 0
  blob = streams.out.getvalue()
  assert bitstream.parse(blob).width == 20
  streams = Streams(monkeypatch, blob)
  assert run("decode", "-", "-") == 0
  image = Image.open(io.BytesIO(streams.out.getvalue()))
  assert (image.format, image.size) == ("PNG", (20, 12))
  streams = Streams(monkeypatch, blob)
  assert run("info", "-") == 0
  assert b"20x12" in streams.out.getvalue()
  streams = Streams(monkeypatch, b"text")
  assert run("encode", "-", tmp_path / "out.mlic") == 2


@pytest.mark.parametrize("name, mode", [*((name, "RGB") for name in FORMATS), ("PPM", "L"), ("PPM", "1")])
def test_every_format_is_read_from_stdin(name, mode, tmp_path, monkeypatch):
  content = io.BytesIO()
  Image.fromarray(IMAGE).convert(mode).save(content, name)
  Streams(monkeypatch, content.getvalue())
  assert run("encode", "-", tmp_path / "out.mlic") == 0
  assert is_mlic(tmp_path / "out.mlic")


def test_a_dash_has_no_name_for_a_folder(tmp_path, capsys):
  assert refused("- has no name", capsys, "encode", "-", "--out-dir", tmp_path / "coded")


# --- names ---------------------------------------------------------------------------

ODD_NAMES = [b"caf\xe9.png", "猫.png".encode(), b"new\nline.png", b"it's \"quoted\".png", b"[bold] :smile:.png",
             b"-dash.png", b"a\\b.png", b"a" * 250 + b".png"]


def test_files_are_coded_and_decoded_whatever_they_are_called(tmp_path, capsysbinary):
  (tmp_path / "pictures").mkdir()
  for name in ODD_NAMES:
    (tmp_path / "pictures" / os.fsdecode(name)).write_bytes(encode_lossless("a.png", IMAGE))
  assert run("encode", tmp_path / "pictures", "--out-dir", tmp_path / "coded") == 0
  out, err = capsysbinary.readouterr()
  assert len(out.splitlines()) == len(ODD_NAMES) and not err
  assert b"new\\nline.mlic" in out and b"caf\\udce9.mlic" in out and "猫.mlic".encode() in out
  assert run("decode", tmp_path / "coded", "--out-dir", tmp_path / "decoded") == 0
  assert sorted(map(os.fsencode, os.listdir(tmp_path / "decoded"))) == sorted(ODD_NAMES)


def test_a_name_that_is_too_long_is_named_and_no_hidden_one(tmp_path, capsys):
  long = tmp_path / ("b" * 252 + ".mlic")
  save_image(tmp_path / "photo.png", IMAGE)
  assert refused(f"{long.name}: File name too long", capsys, "encode", tmp_path / "photo.png", long)


def test_what_is_printed_is_one_line_of_text():
  assert printable("a\nb\x1b[31m\udce9猫") == "a\\nb\\x1b[31m\\udce9猫"


# --- disks and terminals -------------------------------------------------------------

@pytest.mark.parametrize("command, source, target", [("encode", "photo.png", "out.mlic"),
                                                     ("decode", "photo.mlic", "out.tif"),
                                                     ("decode", "photo.mlic", "out.webp")])
def test_a_full_disk_is_one_line_that_names_the_output(command, source, target, photo, tmp_path, capsys, monkeypatch):
  assert run("encode", photo, tmp_path / "photo.mlic") == 0
  capsys.readouterr()

  def no_space(self, content):
    with self.open("wb") as file:                        # what is left of a file then
      file.write(content[:3])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(Path, "write_bytes", no_space)
  assert refused(f"{tmp_path / target}: No space left on device", capsys, command, tmp_path / source, tmp_path / target)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.mlic", "photo.png"]


WRITING = """
import sys, time
from mlic_jax.atomic_io import whole_file
from mlic_jax.commands.exit_codes import run_to_exit_status
def write():
  with whole_file(sys.argv[1]) as partial:
    partial.write_text("begun")
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
sys.exit(run_to_exit_status(write, "error"))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_file_that_a_signal_interrupts_is_left_as_it_was(tmp_path, signum):
  (tmp_path / "out").write_text("before")
  process = subprocess.Popen([sys.executable, "-c", WRITING, tmp_path / "out"], stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
  assert process.stderr.readline() == "ready\n"
  process.send_signal(signum)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signum and err.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").read_text() == "before"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
  """nohup ignores SIGHUP."""
  code = ("import os, signal, sys; from mlic_jax.commands.exit_codes import run_to_exit_status as run\n"
          "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
          "sys.exit(run(lambda: os.kill(os.getpid(), signal.SIGHUP) or 7, 'error'))")
  done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                        timeout=60)
  assert done.returncode == 7


PROGRAM = """
import sys, time
from mlic_jax.commands import encode
from helpers.empty_codec import EmptyCodec
from mlic_jax.__main__ import main
class Slow(EmptyCodec):
  def encode(self, image, *args, **options):
    if image.shape[0] == 13: print("ready", file=sys.stderr, flush=True) or time.sleep(60)
    return super().encode(image, *args, **options)
encode.load_codecs = lambda *_: [Slow()]
sys.exit(main())
"""


def started(*arguments, **options):
  """Returns the command line in a process of its own."""
  path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1, 0))
  return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": path}, **options)


def test_nobody_has_to_read_what_is_printed(tmp_path):
  (tmp_path / "pictures").mkdir()
  for i in range(4):
    save_image(tmp_path / "pictures" / f"{i}.png", IMAGE)
  reader, writer = os.pipe()
  os.close(reader)
  process = started("encode", tmp_path / "pictures", "--out-dir", tmp_path / "coded", "--ckpt", "x", stdout=writer)
  os.close(writer)
  _, err = process.communicate(timeout=300)
  assert (process.returncode, err) == (0, "") and len(list((tmp_path / "coded").iterdir())) == 4


@pytest.mark.parametrize("signum, said", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM"),
                                          (signal.SIGHUP, "stopped by SIGHUP")])
def test_a_signal_is_one_line_that_says_how_far_it_came_and_its_status(tmp_path, signum, said):
  (tmp_path / "pictures").mkdir()
  for i in range(3):
    save_image(tmp_path / "pictures" / f"{i}.png", np.tile(IMAGE, (2, 1, 1))[:12 + (i == 1)])
  process = started("encode", tmp_path / "pictures", "--out-dir", tmp_path / "coded", "--ckpt", "x",
                    stdout=subprocess.PIPE)
  assert process.stderr.readline() == "ready\n"
  process.send_signal(signum)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 128 + signum and err == f"{said}: wrote 1 of 3 files\n"
  assert [path.name for path in (tmp_path / "coded").iterdir()] == ["0.mlic"]
