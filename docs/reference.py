"""The reference, from the docstrings: python docs/reference.py OUT. A warning of pdoc is an error.

Its contents are the floors of the package, as docs/design.md has them.
"""
import re
import sys
import warnings
from pathlib import Path

import pdoc

import mlic_jax

ROOT = Path(__file__).resolve().parents[1]


def floors() -> str:
  """The table under "The floors" of docs/design.md, with the names of modules that pdoc makes links of."""
  text = (ROOT / "docs" / "design.md").read_text().split("## The floors\n", 1)[1].split("\n## ", 1)[0]
  table = text[text.index("| floor"):]
  return re.sub(r"`(\w+)(?:\.py|/)`", r"`mlic_jax.\1`", table).replace("`mlic_jax.__main__`", "`mlic-jax`")


def main() -> None:
  warnings.simplefilter("error")
  mlic_jax.__doc__ += "\n## The floors\nA floor imports those below it only.\n\n" + floors()
  pdoc.render.configure(docformat="markdown", show_source=False)
  pdoc.pdoc("mlic_jax", "!mlic_jax.coding.rangecoder_tfc", output_directory=Path(sys.argv[1]))  # needs TensorFlow


if __name__ == "__main__":
  main()
