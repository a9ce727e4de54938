"""Loads codecs and .mlic files for the commands."""
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from mlic_jax.coding import bitstream, tiled_format
from mlic_jax.commands.stdio import displayed, opened
from mlic_jax.console import complain
from mlic_jax.runtime.startup import no_garbage_collection


def load_codecs(paths: list[Path], coder: str | None = None, allow_custom_modules: bool = False) -> list:
  """Loads the codecs of model directories. CheckpointError if one cannot be used."""
  with no_garbage_collection():
    from mlic_jax.coding import rangecoder
    rangecoder.load_in_background(coder)
    from mlic_jax.coding.codec import Codec
    return [Codec.load(path, coder, allow_custom_modules=allow_custom_modules) for path in paths]


class MlicFile(NamedTuple):
  """A .mlic file and its content; for a tiled file, the content of its header, and its tiles."""
  blob: bytes
  content: bitstream.Bitstream
  tiled: tiled_format.TiledFile | None


@contextlib.contextmanager
def open_mlic(path: Path, pixels_max: int, partial: bool = False) -> Iterator[MlicFile]:
  """Opens a file or stdin, as a context manager. BitstreamError names the file.

  A tiled file is read while it is decoded, and its `blob` is empty; a file that cannot seek is read completely."""
  with opened(path) as file:
    try:
      found = _read(file, pixels_max, partial)
    except bitstream.BitstreamError as error:
      raise bitstream.BitstreamError(f"{displayed(path, 'stdin')}: {error}") from None
    yield found


def _read(file: IO[bytes], pixels_max: int, partial: bool) -> MlicFile:
  blob = file.read(bitstream.HEADER_SIZE_MAX)
  if not tiled_format.is_tiled(blob, pixels_max):       # before the rest is read, which may have any size
    blob += file.read()
    return MlicFile(blob, bitstream.parse(blob, pixels_max, partial), None)
  tiled = tiled_format.TiledFile(file if file.seekable() else blob + file.read(), pixels_max, partial)
  return MlicFile(b"", tiled.content, tiled)


class CompilationNotice:
  """Prints to stderr that a command compiles, before the first image only.

  work: the work of the command, such as "encoding"; past compilation times are recorded for each work."""

  def __init__(self, work: str):
    self._work, self._printed = work, False

  def __call__(self, codec, height: int, width: int):
    """Returns a context for coding an image of height x width pixels."""
    if self._printed or codec.has_compiled(height, width):
      return contextlib.nullcontext()
    from mlic_jax.model.mlic import side_multiple
    from mlic_jax.runtime.compile_progress import compiling
    self._printed, multiple = True, side_multiple(codec.config)
    blocks = -(-height // multiple), -(-width // multiple)
    return compiling(f"for {width}x{height} pixels", [self._work, codec.config.to_dict(), blocks], complain,
                     "some seconds to half a minute on a CPU")
