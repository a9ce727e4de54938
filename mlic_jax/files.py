"""Files that appear whole or not at all."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
  """A name beside `path` to write to: it becomes `path` when the block ends well, and is removed when it does not."""
  path = Path(path)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file, whole or not at all."""
  with whole_file(path) as partial:
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
