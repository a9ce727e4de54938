"""Trains a codec, or continues an interrupted run:

    python train.py --config FILE.py --workdir DIR [--config.FIELD=VALUE ...]

This is `mlic-jax train`: mlic_jax/commands/train.py has the arguments, mlic_jax/training/loop.py the training loop."""
import sys

from mlic_jax.__main__ import run_script

if __name__ == "__main__":
  sys.exit(run_script("train", "train.py"))
