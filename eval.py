"""Rate and distortion of checkpoints from real files: python eval.py --ckpt CKPT [--data FOLDER] [--out DIR] ...

python eval.py --help lists the arguments; the program is mlic_jax/commands/evaluate.py."""
import sys

from mlic_jax.compute.host_memory import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # before anything slow is imported
  from mlic_jax.commands.evaluate import main
  sys.exit(main())
