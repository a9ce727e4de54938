"""First steps of a program of the command line, before slow imports, and the garbage collector during them."""
import atexit
import contextlib
import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.runtime.huge_pages import use_huge_pages

PACKAGE = Path(__file__).parents[1]

code = None  # digest of the sources that this process imports, after `begin`


def begin() -> None:
  """Set up huge pages and a fast exit, and compute the digest of the imported code."""
  global code
  use_huge_pages()
  atexit.register(gc.freeze)   # otherwise the interpreter searches all objects for garbage as it exits
  with contextlib.suppress(OSError):
    code = digest_of_code()


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
  """Disable the garbage collector around imports or tracing, where it takes a fifth of the time and finds little."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


def digest_of_code() -> str | None:
  """Return the digest of all source files of this package on disk; None without source files."""
  digest, paths = hashlib.sha256(), [path for path in PACKAGE.rglob("*.py") if not path.name.startswith(".")]
  for path in sorted(paths):
    digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
    digest.update(path.read_bytes())
  return digest.hexdigest() if paths else None
