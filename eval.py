"""Rate and distortion of checkpoints from real files: python eval.py --ckpt CKPT [--data FOLDER] [--out DIR] ...

python eval.py --help lists the arguments; the program is mlic_jax/commands/evaluate.py."""
import sys

from mlic_jax.commands import entry_points

if __name__ == "__main__":
  sys.exit(entry_points.run("mlic_jax.commands.evaluate", "eval.py"))
