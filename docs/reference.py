"""The reference, from the docstrings: python docs/reference.py OUT. A warning of pdoc is an error.

Its contents are the import layers of the package, as docs/design.md has them.
"""
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pdoc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlic_jax.coding

ROOT = Path(__file__).resolve().parents[1]


def layers() -> str:
  """The table under "Import layers" of docs/design.md, with the names of modules that pdoc makes links of."""
  text = (ROOT / "docs" / "design.md").read_text().split("## Import layers\n", 1)[1].split("\n## ", 1)[0]
  table = text[text.index("| layer"):]
  return re.sub(r"`(\w+)(?:\.py|/)`", r"`mlic_jax.\1`", table).replace("`mlic_jax.__main__`", "`mlic-jax`")


def modules(package: ModuleType, but: str) -> list[str]:
  return [each.name for each in pkgutil.iter_modules(package.__path__) if each.name != but]


def main() -> None:
  warnings.filterwarnings("error", module="pdoc")
  warnings.filterwarnings("ignore", ".*ArrayTree")  # an alias of chex that names itself
  for name in mlic_jax.__all__:  # which are loaded when they are asked for, and pdoc does not ask
    setattr(mlic_jax, name, getattr(mlic_jax, name))
  mlic_jax.__all__ += modules(mlic_jax, but="__main__")
  mlic_jax.coding.__all__ = modules(mlic_jax.coding, but="rangecoder_tfc")  # which cannot be imported everywhere
  mlic_jax.__doc__ += "\n## Import layers\nA layer imports only layers below it.\n\n" + layers()
  pdoc.render.configure(docformat="markdown", show_source=False)
  pdoc.pdoc("mlic_jax", output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
  main()
