"""Pipes and devices in the place of files: "-" for stdin and stdout, and what the file system has of them."""
import mimetypes
import sys
from pathlib import Path

from mlic_jax.atomic_io import is_special, naming, write_whole
from mlic_jax.data.image_io import EXTENSIONS
from mlic_jax.paths import NamedBytes

STREAM = Path("-")
# How the files begin that a picture is read from: a stream that begins otherwise may have no end.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class EndingError(ValueError):
  """An output whose name says that it is something else; one line."""


def is_a_stream(path: Path) -> bool:
  return path == STREAM or is_special(path)


def picture_source(path: Path) -> Path | NamedBytes:
  """What load_picture reads: a path, or all that comes out of a stream, which cannot be read twice."""
  if not is_a_stream(path):
    return path
  name = "stdin" if path == STREAM else str(path)
  with sys.stdin.buffer if path == STREAM else path.open("rb") as stream:
    content = stream.read(16)
    return NamedBytes(content + (stream.read() if content.startswith(MAGIC) else b""), name)


def write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all, or all of it to a stream."""
  if path != STREAM:
    write_whole(path, content)
    return
  with naming(Path("stdout")):
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def refuse_another_ending(path: Path, wanted: str) -> None:
  """EndingError for a name that ends like files of another format; those that mean nothing to anybody are taken."""
  suffix = path.suffix.lower()
  known = mimetypes.guess_type(f"file{suffix}", strict=False)[0] not in (None, "application/octet-stream")
  if suffix != wanted and (known or suffix in EXTENSIONS) and not is_a_stream(path):
    raise EndingError(f"{path}: is to be a {wanted} file, and its ending says another format; wanted {wanted}")
