"""Trains a codec, or continues an interrupted run:

    python train.py --config FILE.py --workdir DIR [--config.FIELD=VALUE ...]

mlic_jax/commands/train.py has the command line, mlic_jax/training/loop.py the program."""
import sys

from mlic_jax.commands import entry_points

if __name__ == "__main__":
  sys.exit(entry_points.run("mlic_jax.commands.train", "train.py"))
