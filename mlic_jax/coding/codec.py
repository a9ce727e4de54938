"""Codec: encodes images to .mlic files and decodes them, with a trained model.

latent_coder.py codes the latents of one image, latent_optimizer.py optimizes them, encode_options.py has the settings.
"""
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO

import numpy as np

from mlic_jax.coding import bitstream, tiled_format
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.codec_input import Buffer, as_bytes, check_slices, opened
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latent_coder import Encoded, LatentCoder
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.memory_estimate import check_memory, is_enough_memory
from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.coding.tile_grid import Box
from mlic_jax.coding.tiled_coder import SILENT, TiledCoder, TileProgress
from mlic_jax.coding.tiled_decoder import TiledDecoder
from mlic_jax.coding.tiled_format import TiledFile
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import ImageLike, to_loaded_image
from mlic_jax.data.image_strips import ImageStrips
from mlic_jax.runtime import compilation_cache

DEFAULT_OPTIONS = EncodeOptions()
Report = Callable[[str], None]   # called with a line


class Codec:
  """A trained model that writes and reads .mlic files, one image at a time.

  A variable-rate checkpoint has the qualities 1 to num_rates, and fractions between them, rounded to 1/256. If no
  quality is given, it uses the middle of the range. A single-rate checkpoint has no quality: it is None.

  Args:
    model: a Model, or a LatentCoder to share with another codec.
    range_coder: "numba" or "tfc", which write and read the same bytes (rangecoder.py). None: the installed one that
      starts faster.
    options: the settings of the encoder.
    progress: called during latent optimization with the completed fraction (0 to 1) and the loss.
    tile_progress: called after each tile of a tiled file with the number of finished tiles and of all tiles.
    tile_batch: the number of tiles that each device computes at a time; see TiledCoder.

  RefineError if `options` ask for latent optimization and the model directory has no objective.
  """

  def __init__(self, model: Model | LatentCoder, range_coder: str | None = None,
               options: EncodeOptions = DEFAULT_OPTIONS,
               progress: Callable[[float, float], None] = lambda done, loss: None,
               tile_progress: TileProgress = SILENT, tile_batch: int = 1):
    self.coder = model if isinstance(model, LatentCoder) else LatentCoder(model, range_coder)
    self.options, self.progress, self.tile_progress, self.tile_batch = options, progress, tile_progress, tile_batch
    if options.refine is not None:
      self.objective(self.qualities[0])

  @classmethod
  def load(cls, path: str | os.PathLike, range_coder: str | None = None,
           allow_custom_modules: bool | Collection[str] = False) -> "Codec":
    """Loads a model directory. CheckpointError if it cannot be used. Enables the compilation cache.

    allow_custom_modules: as in load_model."""
    compilation_cache.enable()
    return cls(load_model(path, allow_custom_modules), range_coder)

  def with_options(self, **changes) -> "Codec":
    """Returns a codec with changed EncodeOptions, such as with_options(skip=0.2, refine=100).

    The order of changes does not matter. Both codecs share compiled functions."""
    options = self.options.replace(**changes)
    return Codec(self.coder, None, options, self.progress, self.tile_progress, self.tile_batch)

  @property
  def config(self) -> CodecConfig:
    return self.coder.config

  @property
  def variables(self) -> dict:
    """{"params": ...}, on the device."""
    return self.coder.variables

  @property
  def fingerprint(self) -> bytes:
    """8 bytes: the hash of config, parameters and CDF table. A file decodes only with the model that wrote it."""
    return self.coder.fingerprint

  @property
  def training(self) -> dict | None:
    """The record of the training run in the model directory, or None."""
    return self.coder.training

  @property
  def model_name(self) -> str:
    """The name of the model directory."""
    return self.coder.name

  @property
  def name(self) -> str:
    """The name of the model directory, and the options that change its files."""
    return self.model_name + self.options.suffix()

  @property
  def qualities(self) -> tuple[int | None, ...]:
    """(1, 2, ..., num_rates), or (None,) for a single-rate checkpoint."""
    return tuple(range(1, self.config.num_rates + 1)) or (None,)

  def choose_quality(self, quality: float | None) -> float | None:
    """Returns the quality that `encode` uses, a float32 as in a file. QualityError if the checkpoint lacks it."""
    return self.coder.choose_quality(quality)

  # --- encoding -------------------------------------------------------------------------

  def encode(self, image: ImageLike | ImageStrips, quality: float | None = None, icc_profile: bytes | None = None, *,
             chunked: bool | None = None, portable: bool | None = None, skip: float | None = None,
             refine: Schedule | int | str | None = None, lmbda: float | None = None, tile: int | None = None) -> bytes:
    """Encodes an image of any size and returns the bytes of the .mlic file.

    Args:
      image: (H, W, 3) uint8, floats in [0, 1], or a PIL image. data.image_io.to_loaded_image describes the rounding of
        floats and the conversion of other color spaces to RGB. The file that data.image_strips.open_strips returns is
        read in strips if it is coded in tiles.
      quality: the quality of a variable-rate checkpoint; see the class.
      icc_profile: the color profile to store in the file; it does not change the coded samples. None stores the profile
        of a PIL image.
      chunked, portable, skip, refine, lmbda, tile: options for this image, see EncodeOptions; None: those of the codec.

    QualityError if the checkpoint does not have the quality; ImageError if `image` is no image; BitstreamError if image
    or profile are too large; MemoryLimitError if the image needs more memory than is free; SkipError, RefineError and
    TilingError for invalid options.
    """
    given = dict(chunked=chunked, portable=portable, skip=skip, refine=refine, lmbda=lmbda, tile=tile)
    changes = {name: value for name, value in given.items() if value is not None}
    codec = self.with_options(**changes) if changes else self
    pixels, own_profile = (image, image.icc_profile) if isinstance(image, ImageStrips) else to_loaded_image(image)[:2]
    profile = icc_profile or own_profile
    if side := codec.tile_side(*pixels.shape[:2]):
      return codec.tiles.encode(pixels, quality, codec.options, side, profile, codec.tile_progress)
    return codec._encode(pixels.load().image if isinstance(pixels, ImageStrips) else pixels, quality, profile).blob

  def encode_many(self, images: Iterable[ImageLike], quality: float | None = None,
                  advance: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """Lazily yields the file of each image, in order, and calls `advance` after each.

    Images are coded one at a time. A batch would use an accelerator better, but its floats differ in the last bits from
    those of a single image, and a file should not depend on the other images of a batch. Compiled functions are cached
    for the last few padded sizes (runtime/shape_cache.py), so it is faster to sort images of many sizes by size."""
    for image in images:
      yield self.encode(image, quality)
      advance()

  def encode_with_reconstruction(self, image: ImageLike, quality: float | None = None,
                                 icc_profile: bytes | None = None) -> tuple[bytes, np.ndarray]:
    """Encodes an image; returns the file and the decoded image (H, W, 3) uint8.

    On this machine `decode` returns the same image bit for bit. Arguments and errors as in `encode`."""
    return self.encode_with_bits(image, quality, icc_profile)[:2]

  def encode_with_bits(self, image: ImageLike, quality: float | None = None, icc_profile: bytes | None = None,
                       ) -> tuple[bytes, np.ndarray, Callable[[], float]]:
    """Encodes an image; returns the file, the decoded image and a function that returns the bits of `estimate`.

    The function computes the bits from the passes of the encoder. Arguments and errors as in `encode`."""
    image, own_profile, _ = to_loaded_image(image)
    profile = icc_profile or own_profile
    if side := self.tile_side(*image.shape[:2]):
      tiled = self.tiles.encode_with_bits(image, quality, self.options, side, profile, self.tile_progress)
      return tiled.blob, tiled.reconstruct(), lambda: tiled.bits
    encoded = self._encode(image, quality, profile)
    return encoded.blob, encoded.reconstruct(), lambda: _sum(*self.coder.bits(encoded.z_symbols, encoded.passes))

  def latents(self, image: ImageLike, quality: float | None = None) -> Latents:
    """Returns the latents that `encode` codes for an image without tiles.

    They are those of the analysis transform, or optimized ones if their file has a lower loss. Arguments and errors as
    in `encode`."""
    return self._latents_and_file(to_loaded_image(image).image, quality)[0]

  def encode_latents(self, latents: Latents, icc_profile: bytes | None = None) -> bytes:
    """Encodes given latents, for example modified ones of `latents`, and returns the bytes of the .mlic file.

    LatentError if the arrays are not finite or do not have the shapes of this codec."""
    return self.coder.encode(latents, self.options, icc_profile).blob

  def encode_latents_with_reconstruction(self, latents: Latents,
                                         icc_profile: bytes | None = None) -> tuple[bytes, np.ndarray]:
    """Encodes given latents; returns the file and the decoded image (H, W, 3) uint8. Errors as in `encode_latents`."""
    encoded = self.coder.encode(latents, self.options, icc_profile)
    return encoded.blob, encoded.reconstruct()

  def estimate(self, image: ImageLike, quality: float | None = None) -> tuple[float, np.ndarray]:
    """Returns the bits by the likelihoods of the model and the decoded image (H, W, 3) uint8, without range coding.

    Arguments and errors as in `encode`."""
    image = to_loaded_image(image).image
    if side := self.tile_side(*image.shape[:2]):
      *bits, decoded = self.tiles.estimate(image, quality, self.options, side)
      return _sum(*bits), decoded
    latents = self.latents(image, quality)
    z_symbols, passes, last_pass = self.coder.run_encoder(latents, self.options)
    return _sum(*self.coder.bits(z_symbols, passes)), self.coder.synthesize(last_pass, *latents[2:])

  def element_bits(self, image: ImageLike, quality: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits of `estimate` for each element of y (h, w, M) and of z (h/4, w/4, N), over all tiles."""
    image = to_loaded_image(image).image
    if side := self.tile_side(*image.shape[:2]):
      return self.tiles.estimate(image, quality, self.options, side)[:2]
    z_symbols, passes, _ = self.coder.run_encoder(self.latents(image, quality), self.options)
    return self.coder.bits(z_symbols, passes)

  def has_compiled(self, height: int, width: int) -> bool:
    """Whether encoding and decoding an image of this size compiles nothing: its padded size was coded recently."""
    if side := self.tile_side(height, width):
      return self.tiles.has_compiled(self.tiles.grid(height, width, side))
    optimizer_compiled = self.options.refine is None or self.optimizer.has_compiled(height, width)
    return optimizer_compiled and self.coder.has_compiled(height, width)

  # --- tiles ----------------------------------------------------------------------------

  @functools.cached_property
  def tiles(self) -> TiledCoder:
    """The TiledCoder of the model. TilingError if its transforms cannot be computed tile by tile."""
    return TiledCoder(self.coder, self.tile_batch)

  def tile_side(self, height: int, width: int) -> int | None:
    """Returns the maximum side of the tiles of an image, by the option `tile` or the memory; None for no tiles."""
    if self.options.tile is None and self.options.refine is None and not is_enough_memory(self.config, height, width):
      return self.tiles.automatic_side(height, width)
    return self.options.tile or None

  # --- latent optimization --------------------------------------------------------------

  @functools.cached_property
  def optimizer(self):
    """The LatentOptimizer of the options. RefineError if the option `refine` is None."""
    from mlic_jax.coding.latent_optimizer import LatentOptimizer  # slow to import, because of optax
    if self.options.refine is None:
      raise RefineError(f"{self.name} does not optimize latents; wanted with_options(refine=...)")
    return LatentOptimizer(self.coder, Schedule.of(self.options.refine), self.options.lmbda)

  def objective(self, quality: float | None) -> tuple[str, float]:
    """Returns the distortion of latent optimization and its weight at a quality. RefineError if they are unknown."""
    return self.optimizer.objective(quality)

  def check(self, height: int, width: int) -> None:
    """Raises MemoryLimitError or RefineError if an image of this size cannot be encoded. Computes nothing."""
    if side := self.tile_side(height, width):
      return self.tiles.check_memory(self.tiles.grid(height, width, side))
    check_memory(self.config, height, width)
    if self.options.refine is not None:
      self.optimizer.check(height, width)

  def _encode(self, image: np.ndarray, quality: float | None, icc_profile: bytes | None) -> Encoded:
    latents, encoded = self._latents_and_file(image, quality, icc_profile)
    return encoded or self.coder.encode(latents, self.options, icc_profile)

  def _latents_and_file(self, image: np.ndarray, quality: float | None,
                        icc_profile: bytes | None = None) -> tuple[Latents, Encoded | None]:
    """Returns the coded latents, and their file if choosing the latents required it."""
    if self.options.refine is None:
      return self.coder.analyze(image, quality), None
    candidates = self.optimizer.candidates(image, quality, self.progress)
    files = [(latents, self.coder.encode(latents, self.options, icc_profile)) for latents in candidates]
    loss = lambda encoded: self.optimizer.loss_of_file(image, quality, encoded.blob, encoded.reconstruct())
    return min(files, key=lambda file: loss(file[1]))

  # --- decoding -------------------------------------------------------------------------

  def decode(self, blob: Buffer, slices: int | None = None, partial: bool = False,
             pixels_max: int = bitstream.PIXELS_MAX, report: Report = lambda line: None) -> np.ndarray:
    """Decodes a .mlic file and returns the image (H, W, 3) uint8.

    Args:
      blob: the content of the file, as bytes or another buffer.
      slices: the number of slices to decode, 0 to num_slices; the entropy model predicts the others. None decodes all.
      partial: accept a file that is truncated or damaged in a slice, and decode the slices before that one. In a tiled
        file this applies to each tile, and a tile without z becomes gray.
      pixels_max: refuse larger images.
      report: called with a line about each incomplete tile of a tiled file, with `partial`.

    BitstreamError if the file is invalid, damaged or written with another checkpoint; PortabilityError, a subclass, if
    the arithmetic of this machine differs too much from that of the encoder; MemoryLimitError if the image needs more
    memory than is free.
    """
    blob = as_bytes(blob)
    if tiled_format.is_tiled(blob, pixels_max):
      return self.open_tiled(TiledFile(blob, pixels_max, partial), slices, partial, report).decode()
    content = bitstream.parse(blob, pixels_max, partial)
    check_slices(slices, content)
    received = content.num_received
    return self.coder.decode(content, received if slices is None else min(slices, received))

  def decode_region(self, source: Buffer | IO[bytes], x: int, y: int, width: int, height: int,
                    slices: int | None = None, partial: bool = False, pixels_max: int = bitstream.PIXELS_MAX,
                    report: Report = lambda line: None) -> np.ndarray:
    """Decodes a region of a .mlic file and returns it, (height, width, 3) uint8.

    It reads only the tiles of a tiled file that the region and its halo touch. The pixels differ from those of `decode`
    by at most one level.

    Args:
      source: the content of the file, or a seekable binary file.
      x, y: column and row of the upper left corner, from 0.
      width, height: size of the region in pixels.
      slices, partial, pixels_max, report: as in `decode`.

    TilingError if the region is not inside the image; other errors as in `decode`.
    """
    area, file = Box(y, x, y + height, x + width), opened(source)
    if tiled_format.is_tiled(file.read(bitstream.HEADER_SIZE_MAX), pixels_max):
      return self.open_tiled(TiledFile(file, pixels_max, partial), slices, partial, report).decode(area)
    file.seek(0)
    blob = file.read()
    content = bitstream.check_header(blob, pixels_max)
    area.check_inside(content.height, content.width)
    return np.ascontiguousarray(self.decode(blob, slices, partial, pixels_max)[area.slices])

  def open_tiled(self, file: TiledFile, slices: int | None = None, partial: bool = False,
                 report: Report = lambda line: None) -> TiledDecoder:
    """Returns the decoder of a tiled file, which can also decode in strips. Arguments and errors as in `decode`."""
    check_slices(slices, file.content)
    self.coder.check_content(file.content)   # fails before the halos of another model are measured
    return TiledDecoder(self.tiles, file, slices, partial, report, self.tile_progress)

  def decode_many(self, blobs: Iterable[Buffer], advance: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
    """Lazily yields the image (H, W, 3) uint8 of each file, in order, and calls `advance` after each.

    Errors as in `decode`."""
    for blob in blobs:
      yield self.decode(blob)
      advance()

  def decode_progressively(self, blob: Buffer) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (bytes received, image (H, W, 3) uint8) for 0, 1, ..., all slices of a file.

    A single-chunk file and a tiled file yield one pair, because no slice is complete before their end. Errors as in
    `decode`."""
    blob = as_bytes(blob)
    if tiled_format.is_tiled(blob):
      yield len(blob), self.decode(blob)
      return
    content, ends = bitstream.parse(blob), bitstream.chunk_ends(blob)
    for slices, end in zip(range(content.num_slices + 1)[-len(ends):], ends):
      yield end, self.coder.decode(content, slices)


def _sum(y_bits: np.ndarray, z_bits: np.ndarray) -> float:
  return float(y_bits.sum(dtype=np.float64) + z_bits.sum(dtype=np.float64))
