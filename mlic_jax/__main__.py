"""The command line: mlic-jax, or python -m mlic_jax, and one of COMMANDS.

A command is a file of mlic_jax/commands/ with add_arguments(parser) and run(args), whose docstring is its help. One
that reads configurations has READS_CONFIG, and gets what else came, --config.FIELD=VALUE, in args.overrides. What a
user can get wrong is one line on stderr and exit status 2, and no output file appears unless it is whole. Of several
files, those that fail are listed at the end, with exit status 1. Ctrl-C is 130. A command imports what it needs when it
runs: `info` and --help answer without jax.
"""
import argparse
import importlib
import sys

import mlic_jax
from mlic_jax.commands.exit_codes import outcome
from mlic_jax.console import printable
from mlic_jax.runtime import startup

COMMANDS = ("encode", "decode", "info", "describe", "compile", "convert", "shrink", "ablate")


class _Parser(argparse.ArgumentParser):
  """Says what is wrong with the arguments in one line, like every other error here."""

  def __init__(self, **options):
    super().__init__(allow_abbrev=False, **options)

  def error(self, message: str):
    self.exit(2, f"error: {printable(message)}; {self.prog} --help lists the arguments\n")


def main(argv: list[str] | None = None, program: str = "python -m mlic_jax") -> int:
  """Runs one command and returns the exit status."""
  return outcome(lambda: run(argv, program), "error", "interrupted")


def run(argv: list[str] | None, program: str) -> int | None:
  """Reads the arguments and runs the command that they name."""
  parser = _Parser(prog=program, description="Learned image compression.")
  parser.add_argument("--version", action="version", version=f"mlic_jax {mlic_jax.__version__}")
  subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  commands = {name: importlib.import_module(f"mlic_jax.commands.{name}") for name in COMMANDS}
  for name, command in commands.items():
    command.add_arguments(subparsers.add_parser(name, help=command.run.__doc__, description=command.run.__doc__))
  args, overrides = parser.parse_known_args(argv)
  args.overrides = overrides
  if args.overrides and not getattr(commands[args.command], "READS_CONFIG", False):
    subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(args.overrides)}")
  return commands[args.command].run(args)


if __name__ == "__main__":
  startup.begin()
  sys.exit(main())
