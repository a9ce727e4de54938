"""Tests of commands with closed standard streams, as under cron, or streams that cannot be written to."""
import numpy as np
import pytest
from helpers.empty_codec import EmptyCodec
from helpers.forked_programs import Program, run_forks

from mlic_jax.__main__ import COMMANDS
from mlic_jax.coding import bitstream
from mlic_jax.data.image_io import load_image, save_image

IMAGE = np.uint8(np.mgrid[:12, :20].sum(0)[..., None] * np.array([8, 4, 2]))

WITH_EMPTY_CODEC = """
from mlic_jax.commands import decode, encode
from helpers.empty_codec import EmptyCodec
import mlic_jax.__main__
encode.load_codecs = decode.load_codecs = lambda *_, **__: [EmptyCodec()]
"""
# What describe counts takes as long as all imports.
WITH_ONE_PART = """
from mlic_jax.model import complexity
complexity.describe = lambda *_: [complexity.Part("g_a", 1000, 1.0)]
"""
ALL_COMMANDS = """
import importlib, pkgutil
import flax, grain, jax, matplotlib, optax, orbax.checkpoint, rich.table
import mlic_jax.commands, mlic_jax.coding.codec, mlic_jax.evaluation.session, mlic_jax.model.complexity
import mlic_jax.training.loop
for module in pkgutil.iter_modules(mlic_jax.commands.__path__):
  importlib.import_module(f"mlic_jax.commands.{module.name}")
""" + WITH_ONE_PART


@pytest.fixture(name="run")
def run_in_shell(tmp_path):
  """run(redirections, *commands) runs them in a shell and returns exit status, stdout and stderr of each.

  The folder has an image, a.png, and its file, a.mlic."""
  save_image(tmp_path / "a.png", IMAGE)
  (tmp_path / "a.mlic").write_bytes(EmptyCodec().encode(IMAGE))

  def run(redirections, *commands, imports=WITH_EMPTY_CODEC):
    main = "import sys; from mlic_jax.__main__ import main; sys.exit(main())"
    return run_forks(imports, [Program(main, command.split()) for command in commands], tmp_path, redirections)
  return run


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_files_are_coded_whatever_is_closed_and_nothing_else_is_written_into_them(run, redirections, tmp_path):
  encoded, decoded = run(redirections, "encode a.png new.mlic --ckpt x", "decode new.mlic --out-dir out --ckpt x")
  assert encoded[::2] == decoded[::2] == (0, "")
  assert bitstream.parse((tmp_path / "new.mlic").read_bytes()).width == 20
  assert load_image(tmp_path / "out" / "new.png").shape == (12, 20, 3)


def test_a_file_that_is_opened_later_does_not_get_the_output_of_closed_streams(tmp_path):
  program = """
from mlic_jax.console import prepare
prepare()
import os
with open("file", "wb"):
  os.write(1, b"output")
  os.write(2, b"errors")
"""
  assert run_forks("", [Program(program, [])], tmp_path, ">&- 2>&-")[0].status == 0
  assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("redirections, name, commands", [
    ("<&-", "stdin", ("encode - b.mlic --ckpt x", "decode - b.png --ckpt x", "info -")),
    (">&-", "stdout", ("encode a.png - --ckpt x", "decode a.mlic - --ckpt x"))])
def test_a_dash_for_a_closed_stream_is_one_line_before_the_work(run, redirections, name, commands, tmp_path):
  error = f"error: - stands for {name}, which is closed; wanted a file, or an open {name}\n"
  assert run(redirections, *commands) == [(2, b"", error)] * len(commands)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mlic", "a.png"]


def test_all_commands_say_what_is_wrong_with_stdin_and_stdout_closed(run):
  fails = ("train --config nope --workdir w", "eval --ckpt nope", "describe --config nope", "convert no no",
           "estimate --config nope --topology v5e:3x5", "round-weights nope w", "info nope",
           "calibrate nope --data no --out w", "ablate --data nope --steps 1 --workdir w --configs nope",
           "encode no --ckpt nope", "decode no --ckpt nope")
  assert {line.split()[0] for line in fails} == set(COMMANDS)
  works = "describe --config ablations/00_hyperprior"
  *failed, worked = run("<&- >&-", *fails, works, imports=ALL_COMMANDS)
  for arguments, (status, _, err) in zip(fails, failed, strict=True):
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: "), (arguments, err)
  assert worked == (0, b"", "")


def test_a_full_disk_under_stdout_is_said_once_and_files_are_written(run, tmp_path):
  save_image(tmp_path / "b.png", IMAGE)
  commands = ("encode a.png b.png --out-dir out --ckpt x", "info a.mlic", "describe --config ablations/00_hyperprior")
  found = run(">/dev/full", *commands, imports=WITH_EMPTY_CODEC + WITH_ONE_PART)
  assert found == [(1, b"", "error: stdout: No space left on device\n")] * 3
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mlic", "b.mlic"]
  assert run("1</dev/null", "info a.mlic") == [(1, b"", "error: stdout: Bad file descriptor\n")]


def test_a_file_that_is_called_dash_is_a_file(run, tmp_path):
  (tmp_path / "-").write_bytes((tmp_path / "a.png").read_bytes())
  commands = ("encode ./- ./--.mlic --ckpt x",
              "encode . --out-dir out --ckpt x",     # where it has no ending of an image
              "encode ./- --out-dir out --ckpt x")
  assert [status for status, *_ in run("</dev/null", *commands)] == [0, 0, 0]
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["-.mlic", "a.mlic"]
  (tmp_path / "-").unlink()
  encoded, told, decoded, alone = run("</dev/null", "encode a.png ././- --ckpt x", "info ./-",
                                      "decode ./- ./-.png --ckpt x", "encode a.png - --ckpt x")
  assert encoded.status == 0 and encoded.stdout.startswith(b"-: ")
  assert bitstream.parse((tmp_path / "-").read_bytes()).width == 20
  assert told.status == 0 and b"20x12" in told.stdout and decoded.status == 0
  assert alone.status == 0 and bitstream.parse(alone.stdout).width == 20  # and a dash alone is stdout
