"""Paths that users name: local ones, and those that etils.epath knows, such as gs://BUCKET/NAME.

A remote path is an epath.Path, which reads like a pathlib.Path. Remote files appear whole when they are closed, and
folders are only the beginnings of their names: nothing can be renamed at once, and nothing locked.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.errors import ConfigError

# Read at the first use of a path. Otherwise etils reads remote files with TensorFlow where that is installed, which
# takes seconds to import and keeps out of training.
os.environ.setdefault("EPATH_USE_TF", "false")


class PathError(ConfigError):
  """A path that nothing here can read, or write to; one line."""


def as_path(text: str | os.PathLike) -> Path:
  """The path that `text` names; PathError for a kind of storage that is not known, or whose package is missing."""
  text = _not_empty(text)
  if not is_remote(text):
    return Path(text)
  import fsspec  # a fifth of a second to import, and not for local paths
  from etils import epath
  scheme = text.partition("://")[0]
  try:
    path = epath.Path(text)
    fsspec.get_filesystem_class(scheme)
  except (KeyError, ValueError):
    raise PathError(f"{text}: no storage of the kind {scheme}:// is known; wanted a local path, or one like "
                    "gs://BUCKET/NAME") from None
  except ImportError as error:
    raise PathError(f"{text}: {' '.join(str(error).split())}") from None
  return path


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path, or the text of one, is not on a file system of this machine."""
  return "://" in os.fspath(path)


def local_path(text: str | os.PathLike) -> Path:
  """The path of what can only be written or read locally; PathError for a remote one."""
  if is_remote(text):
    raise PathError(f"{os.fspath(text)}: cannot lie in remote storage; wanted a local path")
  return Path(_not_empty(text))


def check_utf8(path: Path) -> None:
  """PathError for a path whose bytes are not UTF-8: Orbax reads and writes no others."""
  try:
    os.path.abspath(path).encode()
  except UnicodeEncodeError:
    raise PathError(f"{path}: is not UTF-8, and Orbax, which reads and writes checkpoints, takes no other paths; "
                    "wanted a path in UTF-8") from None


def _not_empty(text: str | os.PathLike) -> str:
  """The text of a path; PathError for an empty one, which comes from a variable that is not set, and would be "."."""
  if not os.fspath(text):
    raise PathError("an empty path came; wanted that of a file or a folder")
  return os.fspath(text)


def readable(path: Path) -> "Path | NamedBytes":
  """What Pillow and NumPy open: a local path as it is, a remote file as its content, with its name."""
  return NamedBytes(path.read_bytes(), str(path)) if is_remote(path) else path


class NamedBytes(io.BytesIO):
  """A file in memory that errors can name."""

  def __init__(self, content: bytes, name: str):
    super().__init__(content)
    self.name = name

  def __str__(self) -> str:
    return self.name


def files_below(folder: Path) -> Iterator[Path]:
  """All files in a folder and below it, in no order."""
  if is_remote(folder):
    import fsspec  # one listing, where epath asks for every folder (and its walk() loses the gs://)
    scheme = str(folder).partition("://")[0]
    yield from (as_path(f"{scheme}://{name.lstrip('/')}") for name in fsspec.filesystem(scheme).find(str(folder)))
  else:
    yield from (path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def local_copy(folder: Path) -> Iterator[Path]:
  """A local folder with the files of `folder`, which is that folder itself unless it is remote."""
  if not is_remote(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="mlic_jax_") as temporary:
    copy_files(folder, Path(temporary))
    yield Path(temporary)


def copy_files(source: Path, target: Path) -> None:
  """Copies all files below `source` to the same names below `target`, each of which appears whole."""
  for path in files_below(source):
    copy = target / str(path).removeprefix(f"{source}/")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())


def remove_folder(folder: Path) -> None:
  """Removes a folder with all that is in it, if it is there."""
  from etils import epath
  epath.Path(folder).rmtree(missing_ok=True)
