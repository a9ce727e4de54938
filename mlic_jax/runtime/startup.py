"""What a program of the command line does first, before anything slow is imported."""
import contextlib
import hashlib
from pathlib import Path

from mlic_jax.runtime.huge_pages import use_huge_pages

PACKAGE = Path(__file__).parents[1]

code = None  # digest of the sources that this process imports, in a program that began here


def begin() -> None:
  """Huge pages, and the digest of the code as it is imported now."""
  global code
  use_huge_pages()
  with contextlib.suppress(OSError):
    code = digest_of_code()


def digest_of_code() -> str | None:
  """Of all source files of this package, as they are on the disk; None where there are none."""
  digest, paths = hashlib.sha256(), [path for path in PACKAGE.rglob("*.py") if not path.name.startswith(".")]
  for path in sorted(paths):
    digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
    digest.update(path.read_bytes())
  return digest.hexdigest() if paths else None
