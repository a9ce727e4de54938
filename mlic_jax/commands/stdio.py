"""Standard streams, pipes and devices as inputs and outputs: - stands for stdin or stdout."""
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

# Stands for stdin or stdout. Compare it with `is_stdio` only: Path("./-"), a file of that name, is equal to it.
STDIO = Path("-")
# The first bytes of supported image files: other streams are not read further, because they may have no end.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
         *(b"P%d" % kind for kind in range(1, 7)))


class EndingError(ValueError):
  """The name of the output has the suffix of another format; the message is one line."""


class StreamError(ValueError):
  """A standard stream cannot be read or written; the message is one line."""


def file_or_stdio(text: str | os.PathLike) -> Path:
  """Returns the local path that `text` names, or STDIO for "-"; "./-" is a file."""
  return STDIO if os.fspath(text) == "-" else local_path(text)


def is_stdio(path: Path) -> bool:
  return path is STDIO


def is_stream(path: Path) -> bool:
  """Whether a path is not a file, but stdin, stdout, a pipe or a device."""
  return is_stdio(path) or is_special(path)


def displayed(path: Path, stream: str) -> str:
  """Returns the name of a path for messages; STDIO is called `stream`."""
  return stream if is_stdio(path) else str(path)


def check_stdio(source: Path, target: Path | None = None) -> None:
  """Raises StreamError if the paths need stdin or stdout and it is closed or a text stream."""
  for path, name in (source, "stdin"), (target, "stdout"):
    if path is not None and is_stdio(path):
      _binary(name)


def _binary(name: str) -> IO[bytes]:
  """Returns the binary stream of "stdin" or "stdout"."""
  stream = getattr(sys, name)
  if stream is None or was_closed(name):
    raise StreamError(f"- stands for {name}, which is closed; wanted a file, or an open {name}")
  if not hasattr(stream, "buffer"):                      # notebooks replace it by a text stream
    raise StreamError(f"- stands for {name}, which takes only text here; wanted a file")
  return stream.buffer


def opened(path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
  """Opens a file or stdin, as a context manager."""
  return _binary("stdin") if is_stdio(path) else path.open("rb")


def image_source(path: Path) -> Path | NamedBytes:
  """Returns the argument of load_image_with_profile: a path, or all bytes of a stream, which cannot be read twice."""
  if not is_stream(path):
    return path
  with opened(path) as stream:
    content = stream.read(16)
    return NamedBytes(content + (stream.read() if content.startswith(MAGIC) or content[4:8] == b"ftyp" else b""),
                      displayed(path, "stdin"))


def write(path: Path, content: bytes) -> None:
  """Writes a file atomically, or writes to a stream."""
  if not is_stdio(path):
    write_whole(path, content)
    return
  with naming(Path("stdout")):
    stream = _binary("stdout")
    stream.write(content)
    stream.flush()


def refuse_another_ending(path: Path, wanted: str) -> None:
  """Raises EndingError for a name with the suffix of another known format; unknown suffixes are accepted."""
  suffix = path.suffix.lower()
  known = mimetypes.guess_type(f"file{suffix}", strict=False)[0] not in (None, "application/octet-stream")
  if suffix != wanted and (known or suffix in EXTENSIONS) and not is_stream(path):
    raise EndingError(f"{path}: the output is a {wanted} file, but the name ends in {suffix}; wanted {wanted}")
