"""Loading codecs and .mlic files in the commands."""
import contextlib
from pathlib import Path

from mlic_jax.coding import bitstream
from mlic_jax.commands.stdio import displayed, opened
from mlic_jax.console import complain


def load_codecs(paths: list[Path], coder: str | None = None, allow_custom_modules: bool = False) -> list:
  """The codecs of model directories; CheckpointError when one cannot be used."""
  from mlic_jax.coding import rangecoder
  rangecoder.load_in_background(coder)
  from mlic_jax.coding.codec import Codec
  return [Codec.load(path, coder, allow_custom_modules=allow_custom_modules) for path in paths]


def read_mlic(path: Path, pixels_max: int, partial: bool = False) -> tuple[bytes, bitstream.Bitstream]:
  """The bytes of a file or of stdin, and their content; BitstreamError names the file."""
  with opened(path) as file:
    blob = file.read(bitstream.HEADER_SIZE_MAX)
    try:
      bitstream.check_header(blob, pixels_max)  # before the rest is read, which may have any size
      blob += file.read()
      return blob, bitstream.parse(blob, pixels_max, partial)
    except bitstream.BitstreamError as error:
      raise bitstream.BitstreamError(f"{displayed(path, 'stdin')}: {error}") from None


class CompilationNotice:
  """Says on stderr that a command waits for compilation, before the first image alone: many images have a progress bar.

  what: is done with images, such as "encoding"; its compilation times are remembered apart."""

  def __init__(self, what: str):
    self._what, self._said = what, False

  def __call__(self, codec, height: int, width: int):
    """A context around the coding of an image."""
    if self._said or codec.has_compiled(height, width):
      return contextlib.nullcontext()
    from mlic_jax.model.mlic import side_multiple
    from mlic_jax.runtime.compile_progress import compiling
    self._said, multiple = True, side_multiple(codec.config)
    blocks = -(-height // multiple), -(-width // multiple)
    return compiling(f"for {width}x{height} pixels", [self._what, codec.config.to_dict(), blocks], complain,
                     "some seconds to half a minute on a CPU")
