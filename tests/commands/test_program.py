"""Tests of the program mlic-jax: its commands, their options and help texts."""
import argparse
import functools
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mlic_jax.__main__ import COMMANDS, main, main_of_one_command
from mlic_jax.model import complexity

ROOT = Path(__file__).parents[2]
COUNTED = functools.cache(complexity.describe)   # tables of one model, which are traced once


def options(command) -> list[argparse.Action]:
  """Returns the arguments that a command adds to its parser, without --help."""
  parser = argparse.ArgumentParser(add_help=False)
  import_module(f"mlic_jax.commands.{COMMANDS[command]}").add_arguments(parser)
  return parser._actions


def help_of(*arguments, capsys) -> str:
  with pytest.raises(SystemExit) as stop:
    main([*arguments, "--help"])
  assert stop.value.code == 0
  return capsys.readouterr().out


def test_one_program_is_installed_and_has_all_commands(capsys):
  scripts = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[2].partition("[")[0].split("\n")
  assert [line.split(" =")[0] for line in scripts if line.strip()] == ["mlic-jax"]
  assert list(COMMANDS) == ["train", "eval", "encode", "decode", "info", "describe", "estimate", "convert",
                            "round-weights", "ablate", "calibrate"]
  listed = help_of(capsys=capsys)
  assert all(re.search(rf"^    {command}\b", listed, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_have_hyphens_and_help_texts_are_sentences_that_end_with_the_default(command):
  for action in options(command):
    assert all("_" not in name for name in action.option_strings)
    sentences = (action.help % vars(action)) if "%(" in action.help else action.help
    assert re.match(r"[A-Z]", sentences) and re.search(r"\.$", sentences), sentences
    *_, first, last = re.split(r"(?<=\.) ", sentences)
    is_required = action.required and action.nargs != "*" or not action.option_strings
    assert last == "Required." if is_required else "Default: " in f"{first} {last}", sentences


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_takes_fields_of_the_configuration_says_so(command, capsys):
  takes_fields = command in ("train", "describe", "estimate", "ablate")
  assert ("[--config.FIELD=VALUE ...]" in help_of(command, capsys=capsys)) == takes_fields
  required = {"eval": ["--ckpt", "x"], "encode": ["--ckpt", "x"], "decode": ["--ckpt", "x"], "info": ["x"],
              "convert": ["a", "b"], "round-weights": ["a", "b"], "calibrate": ["a", "--data", "b", "--out", "c"]}
  if not takes_fields:
    assert main([command, *required[command], "--config.seed=1"]) == 2
    assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err


@pytest.mark.parametrize("command, option", [
    ("encode", ["--quality", "3"]), ("encode", ["--overwrite"]), ("decode", ["--region", "1,2,3,4"]),
    ("decode", ["--partial"]), ("convert", ["--to", "authors"]), ("round-weights", ["--allow-custom-modules"])])
def test_options_may_stand_between_the_files(command, option, monkeypatch):
  files = ["in.mlic", "out.png"]
  required = ["--ckpt", "model"] if command in ("encode", "decode") else []
  read = []
  monkeypatch.setattr(import_module(f"mlic_jax.commands.{COMMANDS[command]}"), "run", read.append)
  for order in [*files, *option], [*option, *files], [files[0], *option, files[1]]:
    main([command, *order, *required])
  assert len(read) == 3 and read[0] == read[1] == read[2]
  assert files == [str(path) for path in getattr(read[0], "paths", files)]


@pytest.mark.parametrize("command, script", [("train", "train.py"), ("eval", "eval.py")])
def test_the_scripts_are_commands_of_the_program_under_their_own_names(command, script, capsys):
  ours = help_of(command, capsys=capsys)
  done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0 and f"usage: {script} [-h]" in done.stdout
  words = lambda text: text.replace(f"mlic-jax {command}", script).split()
  assert words(done.stdout) == words(ours)
  assert main([command]) == 2 and main_of_one_command(command, script, []) == 2
  of_program, of_script = capsys.readouterr().err.splitlines()
  assert of_program.startswith("error: the following arguments are required: --c")
  assert of_script.startswith(f"{script}: the following arguments are required: --c")


def test_every_command_that_loads_a_model_directory_can_allow_its_modules():
  takes = {command for command in COMMANDS if "--allow-custom-modules" in
           {name for action in options(command) for name in action.option_strings}}
  assert takes == {"eval", "encode", "decode", "convert", "round-weights", "calibrate"}


def test_help_answers_without_jax():
  code = ("import sys; from mlic_jax.__main__ import main\n"
          "try: main(['--help'])\nfinally: assert not {'jax', 'scipy', 'matplotlib'} & set(sys.modules)")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 0


def test_help_is_the_same_without_docstrings():
  """Some containers set PYTHONOPTIMIZE=2, which removes docstrings."""
  helps = [subprocess.run([sys.executable, *flags, "-m", "mlic_jax", "--help"], cwd=ROOT, capture_output=True,
                          timeout=300).stdout for flags in ([], ["-OO"])]
  assert helps[0] == helps[1] and b"Compress images" in helps[0]


def test_a_folder_that_was_removed_under_the_command_is_named(tmp_path):
  """The command is one that finds out before the slow imports."""
  (tmp_path / "here").mkdir()
  command = f"rmdir {tmp_path / 'here'} && {sys.executable} -m mlic_jax calibrate model --data images --out calibrated"
  done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "here", capture_output=True, text=True, timeout=300,
                        env=os.environ | {"PYTHONPATH": str(ROOT)})
  assert (done.returncode, done.stderr) == (2, "error: the current folder no longer exists\n")


@pytest.mark.parametrize("columns", ["0", "1", "-5", "none"])
def test_a_terminal_without_a_width_gets_a_table_all_the_same(columns, monkeypatch, capsys):
  monkeypatch.setattr(complexity, "describe", COUNTED)
  monkeypatch.setenv("COLUMNS", columns)
  assert main(["describe", "--config", "ablations/00_hyperprior", "--height", "64", "--width", "64"]) == 0
  assert max(map(len, capsys.readouterr().out.splitlines())) > 40


@pytest.mark.parametrize("arguments", [
    ["encode", "x.png", "--out-dir", "", "--ckpt", "x"], ["encode", "", "x.mlic", "--ckpt", "x"], ["info", ""],
    ["encode", "x.png", "x.mlic", "--ckpt", ""], ["eval", "--ckpt", "x", "--out", ""], ["eval", "--ckpt", ""],
    ["eval", "--ckpt", "x", "--data", ""], ["train", "--config", "nano", "--workdir", "", "--config.data_dir=x"],
    ["ablate", "--data", "", "--steps", "1", "--workdir", "x"], ["round-weights", "x", ""],
    ["calibrate", "x", "--data", "", "--out", "y"]])
def test_an_empty_path_is_refused_and_is_not_the_current_folder(arguments, tmp_path, monkeypatch, capsys):
  """An unset shell variable gives an empty argument."""
  monkeypatch.chdir(tmp_path)
  assert main(arguments) == 2
  out, err = capsys.readouterr()
  assert not out and err.count("\n") == 1 and "got an empty path" in err
  assert not list(tmp_path.iterdir())


def test_an_old_name_of_a_command_is_refused_with_the_names_there_are(capsys):
  assert main(["compile"]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1 and "invalid choice: 'compile'" in line and "estimate" in line
