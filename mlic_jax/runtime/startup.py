"""First steps of a program of the command line, before slow imports."""
import contextlib
import hashlib
from pathlib import Path

from mlic_jax.runtime.huge_pages import use_huge_pages

PACKAGE = Path(__file__).parents[1]

code = None  # digest of the sources that this process imports, after `begin`


def begin() -> None:
  """Set up huge pages, and compute the digest of the imported code."""
  global code
  use_huge_pages()
  with contextlib.suppress(OSError):
    code = digest_of_code()


def digest_of_code() -> str | None:
  """Return the digest of all source files of this package on disk; None without source files."""
  digest, paths = hashlib.sha256(), [path for path in PACKAGE.rglob("*.py") if not path.name.startswith(".")]
  for path in sorted(paths):
    digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
    digest.update(path.read_bytes())
  return digest.hexdigest() if paths else None
