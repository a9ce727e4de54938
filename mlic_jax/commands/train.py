"""train: train a codec, or continue an interrupted run.

    mlic-jax train --config configs/nano.py --workdir DIR --config.data_dir=FOLDER [--config.FIELD=VALUE ...]
    mlic-jax train --config mlic_plus_plus:ms_ssim:5 ...      get_config("ms_ssim:5")

Exit status: 0 after the last step; 1 after a loss that is not finite, a failed last save or a lost process; 2 for an
invalid config or data; 129, 130 and 143 after SIGHUP, SIGINT and SIGTERM, with the state saved.
"""
import argparse

from mlic_jax.commands.arguments import config_argument

SUMMARY = "Train a codec, or continue an interrupted run."
READS_CONFIG = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  config_argument(parser)
  parser.add_argument("--workdir", required=True, metavar="DIR",
                      help="Write checkpoints, logs and the model to DIR, or continue the run in DIR. Required.")


def run(args: argparse.Namespace) -> None:
  from mlic_jax.training.config_schema import load_config
  from mlic_jax.training.loop import train_and_evaluate
  train_and_evaluate(load_config(args.config, args.overrides), args.workdir)
