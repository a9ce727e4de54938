"""Rate and distortion of checkpoints from real files: python eval.py --ckpt CKPT [--data FOLDER] [--out DIR] ...

python eval.py --help lists the arguments; the program is mlic_jax/commands/evaluate.py."""
import sys

from mlic_jax.commands import programs

if __name__ == "__main__":
  sys.exit(programs.run("mlic_jax.commands.evaluate", "eval.py"))
