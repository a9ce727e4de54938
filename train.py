"""Trains a codec, or continues an interrupted run:

    python train.py --config FILE.py --workdir DIR [--config.FIELD=VALUE ...]

mlic_jax/commands/train.py has the command line, mlic_jax/training/loop.py the program."""
import sys

from mlic_jax.compute.host_memory import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # before anything slow is imported
  from mlic_jax.commands.train import main
  sys.exit(main())
