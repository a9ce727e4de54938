"""Pipes and devices in the place of files: - for stdin and stdout, and those of the file system."""
import contextlib
import mimetypes
import os
import sys
from pathlib import Path
from typing import IO

from mlic_jax.atomic_io import is_special, naming, write_whole
from mlic_jax.console import was_closed
from mlic_jax.data.image_io import EXTENSIONS
from mlic_jax.paths import NamedBytes, local_path

# Stands for stdin or stdout, and is compared by `is_stdio` alone: Path("./-"), a file of that name, equals it.
STDIO = Path("-")
# The first bytes of the image files that are read: a stream that begins otherwise may have no end.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class EndingError(ValueError):
  """An output whose name has the ending of another format; one line."""


class StreamError(ValueError):
  """A standard stream that cannot be read, or written to; one line."""


def file_or_stdio(text: str | os.PathLike) -> Path:
  """The local path that `text` names; STDIO for "-". "./-" is a file."""
  return STDIO if os.fspath(text) == "-" else local_path(text)


def is_stdio(path: Path) -> bool:
  return path is STDIO


def is_stream(path: Path) -> bool:
  """Whether a path is no file: stdin, stdout, a pipe or a device."""
  return is_stdio(path) or is_special(path)


def displayed(path: Path, stream: str) -> str:
  """The name of a path for messages, where STDIO is `stream`."""
  return stream if is_stdio(path) else str(path)


def check_stdio(source: Path, target: Path | None = None) -> None:
  """Raises StreamError, before the work, where stdin or stdout is asked for and closed, or takes no bytes."""
  for path, name in (source, "stdin"), (target, "stdout"):
    if path is not None and is_stdio(path):
      _binary(name)


def _binary(name: str) -> IO[bytes]:
  """The bytes of "stdin" or "stdout"."""
  stream = getattr(sys, name)
  if stream is None or was_closed(name):
    raise StreamError(f"- came, and {name} is closed; wanted a file, or an open {name}")
  if not hasattr(stream, "buffer"):                      # what stands in for it in a notebook
    raise StreamError(f"- came, and {name} is for text alone here; wanted a file")
  return stream.buffer


def opened(path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
  """A context with the file, or with stdin."""
  return _binary("stdin") if is_stdio(path) else path.open("rb")


def image_source(path: Path) -> Path | NamedBytes:
  """The argument of load_picture: a path, or all bytes of a stream, which cannot be read twice."""
  if not is_stream(path):
    return path
  with opened(path) as stream:
    content = stream.read(16)
    return NamedBytes(content + (stream.read() if content.startswith(MAGIC) or content[4:8] == b"ftyp" else b""),
                      displayed(path, "stdin"))


def write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all, or all of it to a stream."""
  if not is_stdio(path):
    write_whole(path, content)
    return
  with naming(Path("stdout")):
    stream = _binary("stdout")
    stream.write(content)
    stream.flush()


def refuse_another_ending(path: Path, wanted: str) -> None:
  """Raises EndingError for a name with the ending of another known format; unknown endings are accepted."""
  suffix = path.suffix.lower()
  known = mimetypes.guess_type(f"file{suffix}", strict=False)[0] not in (None, "application/octet-stream")
  if suffix != wanted and (known or suffix in EXTENSIONS) and not is_stream(path):
    raise EndingError(f"{path}: is to be a {wanted} file, and its ending says another format; wanted {wanted}")
