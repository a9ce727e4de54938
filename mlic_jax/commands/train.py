"""train.py: the command line of a training.

    python train.py --config configs/nano.py --workdir DIR --config.data_dir=FOLDER [--config.FIELD=VALUE ...]
    python train.py --config configs/mlic_plus_plus.py:ms_ssim:5 ...      the rest of a name goes to get_config

Exit status: 0 done, 1 the loss became non-finite, the end could not be saved or another process was lost, 2 bad
configuration or data, 129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM with the state saved.
"""
import argparse

from mlic_jax.commands.exit_codes import outcome
from mlic_jax.console import complain

USAGE = "--config FILE[:ARGUMENT] --workdir DIR [--config.FIELD=VALUE ...]"


class _Parser(argparse.ArgumentParser):
  def error(self, message: str):
    complain(f"{self.prog}: {message}; wanted {USAGE}")
    self.exit(2)


def main(argv: list[str] | None = None, program: str = "train.py") -> int:
  """Runs a training by the arguments behind the program's name; returns the exit status."""
  return outcome(lambda: train(argv, program), program)


def train(argv: list[str] | None, program: str) -> None:
  """The order of events. Ctrl-C during the steps ends them with their state saved."""
  parser = _Parser(prog=program, usage=f"%(prog)s {USAGE}", allow_abbrev=False,
                   description="Trains a codec, or continues an interrupted run.")
  parser.add_argument("--config", required=True, help="Python file with get_config(), or the name of one that comes "
                      "along, such as nano; what follows a colon is its argument, as in mlic_plus_plus:mse:3")
  parser.add_argument("--workdir", required=True, help="where checkpoints, logs and the model go")
  args, overrides = parser.parse_known_args(argv)
  from mlic_jax.training.config_schema import load_config  # slow, as all that computes
  from mlic_jax.training.loop import train_and_evaluate
  train_and_evaluate(load_config(args.config, overrides), args.workdir)
