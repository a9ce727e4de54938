"""Files that appear whole or not at all."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.paths import as_path, is_remote


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
  """A name beside the local `path` to write to: it becomes `path` when the block ends well, and is removed when it does
  not."""
  path = Path(path)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    yield partial
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a file, whole or not at all; a remote one appears when it is closed."""
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    as_path(path).write_bytes(content)
    return
  with whole_file(path) as partial:
    partial.write_bytes(content)
