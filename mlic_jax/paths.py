"""Local paths, and remote paths of etils.epath such as gs://BUCKET/NAME.

A remote path is an epath.Path with the interface of pathlib.Path. Remote files appear when they are closed, and folders
are prefixes of names, so renames are not atomic and locks do not exist.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlic_jax.errors import ConfigError

# etils reads it at the first use of a path. By default it reads remote files with TensorFlow, if installed, which takes
# seconds to import.
os.environ.setdefault("EPATH_USE_TF", "false")


class PathError(ConfigError):
  """A path that cannot be read or written; one line."""


def as_path(text: str | os.PathLike) -> Path:
  """Return the path of `text`. PathError for unknown storage, or if the package for this storage is missing."""
  text = _not_empty(text)
  if not is_remote(text):
    return Path(text)
  import fsspec  # takes 0.2 s to import, and local paths do not need it
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
  """Return whether a path is in remote storage."""
  return "://" in os.fspath(path)


def local_path(text: str | os.PathLike) -> Path:
  """Return a path that has to be local. PathError for a remote one."""
  if is_remote(text):
    raise PathError(f"{os.fspath(text)}: cannot lie in remote storage; wanted a local path")
  return Path(_not_empty(text))


def check_utf8(path: Path) -> None:
  """Raise a PathError for a path that is not UTF-8, because Orbax does not support it."""
  try:
    os.path.abspath(path).encode()
  except UnicodeEncodeError:
    raise PathError(f"{path}: is not UTF-8, and Orbax, which reads and writes checkpoints, takes no other paths; "
                    "wanted a path in UTF-8") from None


def _not_empty(text: str | os.PathLike) -> str:
  """Return the text of a path. PathError for an empty one, as from an unset variable, which would mean "."."""
  if not os.fspath(text):
    raise PathError("got an empty path; wanted a file or a folder")
  return os.fspath(text)


def readable(path: Path) -> "Path | NamedBytes":
  """Return an argument for Pillow and NumPy: a local path itself, or the content of a remote file with its name."""
  return NamedBytes(path.read_bytes(), str(path)) if is_remote(path) else path


class NamedBytes(io.BytesIO):
  """A file in memory with a name for error messages."""

  def __init__(self, content: bytes, name: str):
    super().__init__(content)
    self.name = name

  def __str__(self) -> str:
    return self.name


def files_below(folder: Path) -> Iterator[Path]:
  """Yield all files in a folder and its subfolders, in no order."""
  if is_remote(folder):
    import fsspec  # one request, where epath has one per folder (and its walk() loses the gs://)
    scheme = str(folder).partition("://")[0]
    yield from (as_path(f"{scheme}://{name.lstrip('/')}") for name in fsspec.filesystem(scheme).find(str(folder)))
  else:
    yield from (path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def local_copy(folder: Path) -> Iterator[Path]:
  """Context manager with a local folder of the files of `folder`: a copy of a remote one, otherwise itself."""
  if not is_remote(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="mlic_jax_") as temporary:
    copy_files(folder, Path(temporary))
    yield Path(temporary)


def copy_files(source: Path, target: Path) -> None:
  """Copy all files below `source` to the same names below `target`."""
  for path in files_below(source):
    copy = target / str(path).removeprefix(f"{source}/")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())


def remove_folder(folder: Path) -> None:
  """Remove a folder and its content, if it exists."""
  from etils import epath
  epath.Path(folder).rmtree(missing_ok=True)
