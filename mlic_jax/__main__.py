"""The command line: `mlic-jax COMMAND ...`, or `python -m mlic_jax COMMAND ...`.

Each command is a module of mlic_jax/commands/ with SUMMARY (its help), add_arguments(parser) and run(args). A module
with READS_CONFIG = True also takes --config.FIELD=VALUE, and finds these arguments in args.overrides. train.py and
eval.py run a single command.

User errors are reported in one line on stderr with exit status 2, and output files are written atomically. A command
for several files lists the failures at the end, with exit status 1. Ctrl-C exits with 130, SIGTERM with 143. A command
imports its dependencies when it runs, so `info` and --help do not import jax.
"""
import argparse
import importlib
import sys
from types import ModuleType

import mlic_jax
from mlic_jax.commands.exit_codes import UsageError, run_to_exit_status
from mlic_jax.runtime import startup

# {name on the command line: module}
COMMANDS = {"train": "train", "eval": "evaluate", "encode": "encode", "decode": "decode", "info": "info",
            "describe": "describe", "estimate": "estimate", "convert": "convert", "round-weights": "round_weights",
            "ablate": "ablate", "calibrate": "calibrate"}
CONFIG_FIELDS = "[--config.FIELD=VALUE ...]"


class _Parser(argparse.ArgumentParser):
  """Reports invalid arguments in one line, like every other user error."""

  def __init__(self, **options):
    super().__init__(allow_abbrev=False, **options)

  def error(self, message: str):
    raise UsageError(f"{message}; {self.prog} --help lists the arguments")


def main(argv: list[str] | None = None, program: str = "mlic-jax") -> int:
  """Runs the command named by the first argument; returns the exit status."""
  return run_to_exit_status(lambda: _run(argv, program), "error")


def main_of_one_command(name: str, program: str, argv: list[str] | None = None) -> int:
  """Runs a single command as its own program, such as train.py; returns the exit status."""
  def run():
    parser, command = _Parser(prog=program), _module(name)
    _add_command(parser, command)
    return _run_command(command, parser, *parser.parse_known_intermixed_args(argv))
  return run_to_exit_status(run, program)


def run_program() -> int:
  """Runs the installed program mlic-jax; returns the exit status."""
  startup.begin()
  return main()


def run_script(name: str, program: str) -> int:
  """Runs train.py or eval.py; returns the exit status."""
  startup.begin()
  return main_of_one_command(name, program)


def _run(argv: list[str] | None, program: str) -> int | None:
  parser = _Parser(prog=program, description="Train, evaluate and use learned image codecs of the MLIC family.")
  parser.add_argument("--version", action="version", version=f"mlic_jax {mlic_jax.__version__}",
                      help="Print the version and exit.")
  subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  modules = {name: _module(name) for name in COMMANDS}
  for name, command in modules.items():
    _add_command(subparsers.add_parser(name, help=command.SUMMARY), command)
  name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
  if name in COMMANDS:  # a parser that has commands cannot read options between paths, so the one of the command does
    of_command = subparsers.choices[name]
    return _run_command(modules[name], of_command, *of_command.parse_known_intermixed_args(arguments))
  args, rest = parser.parse_known_args(argv)
  return _run_command(modules[args.command], subparsers.choices[args.command], args, rest)


def _module(name: str) -> ModuleType:
  return importlib.import_module(f"mlic_jax.commands.{COMMANDS[name]}")


def _add_command(parser: argparse.ArgumentParser, command: ModuleType) -> None:
  parser.description = command.SUMMARY
  command.add_arguments(parser)
  if _reads_config(command):
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} {CONFIG_FIELDS}".replace("%", "%%")
    parser.epilog = "Change any field of the config with --config.FIELD=VALUE, such as --config.batch_size=16."


def _run_command(command: ModuleType, parser: argparse.ArgumentParser, args: argparse.Namespace,
                 rest: list[str]) -> int | None:
  if rest and not _reads_config(command):
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  args.overrides = rest
  return command.run(args)


def _reads_config(command: ModuleType) -> bool:
  return getattr(command, "READS_CONFIG", False)


if __name__ == "__main__":
  startup.begin()
  sys.exit(main(program="python -m mlic_jax"))
