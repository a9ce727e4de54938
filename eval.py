"""Measures rate and distortion of checkpoints on complete files:

    python eval.py --ckpt CKPT [--data FOLDER] [--out DIR] ...

This is `mlic-jax eval`: mlic_jax/commands/evaluate.py has the arguments, which --help lists."""
import sys

from mlic_jax.__main__ import run_script

if __name__ == "__main__":
  sys.exit(run_script("eval", "eval.py"))
