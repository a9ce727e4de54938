"""Tests of commands with closed standard streams, as under cron, or streams that cannot be written to."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.__main__ import COMMANDS
from mlic_jax.coding import bitstream
from mlic_jax.data.image_io import load_image, save_image

ROOT = Path(__file__).parents[2]
IMAGE = np.uint8(np.mgrid[:12, :20].sum(0)[..., None] * np.array([8, 4, 2]))

PROGRAM = """
import atexit, gc, sys
from mlic_jax.commands import decode, encode
from helpers.empty_codec import EmptyCodec
from mlic_jax.__main__ import main
encode.load_codecs = decode.load_codecs = lambda *_, **__: [EmptyCodec()]
atexit.register(gc.freeze)              # as in the program, whose other first steps are not needed here
sys.exit(main())
"""


@pytest.fixture(name="run")
def run_in_shell(tmp_path):
  """run(arguments, redirections) runs a command in a shell and returns exit status, stdout and stderr."""
  save_image(tmp_path / "a.png", IMAGE)
  path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1, 0))

  def run(arguments, redirections, program=f"-c '{PROGRAM}'"):
    command = f"{sys.executable} {program} {arguments} {redirections}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": path})
    return done.returncode, done.stdout, done.stderr.decode()
  return run


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_files_are_coded_whatever_is_closed_and_nothing_else_is_written_into_them(run, redirections, tmp_path):
  status, _, err = run("encode a.png a.mlic --ckpt x", redirections)
  assert status == 0 and not err
  assert bitstream.parse((tmp_path / "a.mlic").read_bytes()).width == 20
  assert run("decode a.mlic --out-dir out --ckpt x", redirections)[::2] == (0, "")
  assert load_image(tmp_path / "out" / "a.png").shape == (12, 20, 3)


@pytest.mark.parametrize("arguments, redirections, name", [
    ("encode - b.mlic --ckpt x", "<&-", "stdin"), ("encode a.png - --ckpt x", ">&-", "stdout"),
    ("decode - b.png --ckpt x", "<&-", "stdin"), ("decode a.mlic - --ckpt x", ">&-", "stdout"),
    ("info -", "<&-", "stdin")])
def test_a_dash_for_a_closed_stream_is_one_line_before_the_work(run, arguments, redirections, name, tmp_path):
  assert run("encode a.png a.mlic --ckpt x", "")[0] == 0
  status, out, err = run(arguments, redirections)
  assert (status, out) == (2, b"")
  assert err == f"error: - stands for {name}, which is closed; wanted a file, or an open {name}\n"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mlic", "a.png"]


# Forks a process for each line of `commands`, after the imports, which take nearly all of the time of a failure.
FORKS = """
import gc, importlib, json, os, pkgutil, sys, warnings
import flax, grain, jax, matplotlib, optax, orbax.checkpoint
import mlic_jax.commands
from mlic_jax.__main__ import main
for module in pkgutil.iter_modules(mlic_jax.commands.__path__):
  importlib.import_module(f"mlic_jax.commands.{module.name}")
with open("commands") as file:
  commands = file.read().splitlines()
gc.freeze()                             # for the exits
found = []
for command in commands:
  assert sys.stdin is None and sys.stdout is None
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # of jax, whose threads have not started yet
    child = os.fork()
  if not child:
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    os.close(said)
    sys.exit(main(command.split()))
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  with open("said") as file:
    found.append((status, file.read()))
with open("found", "w") as file:
  json.dump(found, file)
"""


def test_all_commands_say_what_is_wrong_with_stdin_and_stdout_closed(run, tmp_path):
  fails = ("train --config nope --workdir w", "eval --ckpt nope", "describe --config nope", "convert no no",
           "estimate --config nope --topology v5e:3x5", "round-weights nope w", "info nope",
           "calibrate nope --data no --out w", "ablate --data nope --steps 1 --workdir w --configs nope",
           "encode no --ckpt nope", "decode no --ckpt nope")
  assert {line.split()[0] for line in fails} == set(COMMANDS)
  works = "describe --config ablations/00_hyperprior"
  (tmp_path / "commands").write_text("\n".join([*fails, works]))
  assert run("", "<&- >&-", f"-c '{FORKS}'") == (0, b"", "")
  *failed, worked = json.loads((tmp_path / "found").read_text())
  for arguments, (status, err) in zip(fails, failed, strict=True):
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: "), (arguments, err)
  assert worked == [0, ""]


def test_a_full_disk_under_stdout_is_said_once_and_files_are_written(run, tmp_path):
  assert run("encode a.png a.mlic --ckpt x", "")[0] == 0
  save_image(tmp_path / "b.png", IMAGE)
  said = (1, b"", "error: stdout: No space left on device\n")
  assert run("encode a.png b.png --out-dir out --ckpt x", ">/dev/full") == said
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mlic", "b.mlic"]
  assert run("info a.mlic", ">/dev/full") == said
  assert run("describe --config ablations/00_hyperprior", ">/dev/full") == said
  assert run("info a.mlic", "1</dev/null") == (1, b"", "error: stdout: Bad file descriptor\n")


def test_a_file_that_is_called_dash_is_a_file(run, tmp_path):
  (tmp_path / "-").write_bytes((tmp_path / "a.png").read_bytes())
  assert run("encode ./- ./--.mlic --ckpt x", "</dev/null")[0] == 0
  assert run("encode . --out-dir out --ckpt x", "</dev/null")[0] == 0     # where it has no ending of an image
  assert run("encode ./- --out-dir out --ckpt x", "</dev/null")[0] == 0
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["-.mlic", "a.mlic"]
  (tmp_path / "-").unlink()
  status, out, _ = run("encode a.png ././- --ckpt x", "")
  assert status == 0 and out.startswith(b"-: ")
  assert bitstream.parse((tmp_path / "-").read_bytes()).width == 20
  status, out, _ = run("info ./-", "</dev/null")
  assert status == 0 and b"20x12" in out
  assert run("decode ./- ./-.png --ckpt x", "</dev/null")[0] == 0
  status, out, _ = run("encode a.png - --ckpt x", "")
  assert status == 0 and bitstream.parse(out).width == 20                  # and a dash alone is stdout
