"""What a program of the command line does first, before anything slow is imported."""
import hashlib
from pathlib import Path

from mlic_jax.compute.host_memory import use_huge_pages

PACKAGE = Path(__file__).parents[1]

code = None  # digest of the sources that this process imports, in a program that began here


def begin() -> None:
  """Huge pages, and the digest of the code as it is imported now."""
  global code
  use_huge_pages()
  code = digest_of_code()


def digest_of_code() -> str:
  """Of all source files of this package, as they are on the disk."""
  digest = hashlib.sha256()
  for path in sorted(PACKAGE.rglob("*.py")):
    digest.update(path.read_bytes())
  return digest.hexdigest()
