"""Codec: images to .mlic files and back, with a trained model.

latent_coder.py codes the latents of one image, latent_optimizer.py optimizes them, encode_options.py has the settings.
"""
import functools
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from mlic_jax.coding import bitstream
from mlic_jax.coding.bitstream import BitstreamError
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latent_coder import Encoded, LatentCoder
from mlic_jax.coding.latents import Latents
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.coding.optimization_schedule import RefineError, Schedule
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import AnyPicture, as_picture
from mlic_jax.runtime import compilation_cache

DEFAULT_OPTIONS = EncodeOptions()
Buffer = bytes | bytearray | memoryview


class Codec:
  """A trained model that writes and reads .mlic files, one image at a time.

  A variable-rate checkpoint has qualities 1 to num_rates, and fractions between them, rounded to 1/256; without a
  quality it takes the middle of the range. A single-rate checkpoint has no quality: it is None.

  Args:
    model: a Model, or a LatentCoder that another codec uses.
    range_coder: "numba" or "tfc", which write and read the same bytes (rangecoder.py). None: the one of those installed
      that starts faster.
    options: how images are encoded.
    progress: called while latents are optimized, with the fraction that is done and the loss.

  RefineError when `options` optimize latents and the model directory does not say for which objective.
  """

  def __init__(self, model: Model | LatentCoder, range_coder: str | None = None,
               options: EncodeOptions = DEFAULT_OPTIONS,
               progress: Callable[[float, float], None] = lambda done, loss: None):
    self.coder = model if isinstance(model, LatentCoder) else LatentCoder(model, range_coder)
    self.options, self.progress = options, progress
    if options.refine is not None:
      self.objective(self.qualities[0])

  @classmethod
  def load(cls, path: str | os.PathLike, range_coder: str | None = None,
           allow_custom_modules: bool | Collection[str] = False) -> "Codec":
    """The codec of a model directory; CheckpointError if it is none. Turns the compilation cache on.

    allow_custom_modules: as in load_model."""
    compilation_cache.enable()
    return cls(load_model(path, allow_custom_modules), range_coder)

  def with_options(self, **changes) -> "Codec":
    """The same codec with other EncodeOptions, such as with_options(skip=0.2, refine=100); their order is of no
    consequence. What is compiled is shared."""
    return Codec(self.coder, None, self.options.replace(**changes), self.progress)

  @property
  def config(self) -> CodecConfig:
    return self.coder.config

  @property
  def variables(self) -> dict:
    """{"params": ...}, on the device."""
    return self.coder.variables

  @property
  def fingerprint(self) -> bytes:
    """8 bytes, of all that decides how a file decodes."""
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
    """The name of the model directory, and the options by which its files differ."""
    return self.model_name + self.options.suffix()

  @property
  def qualities(self) -> tuple[int | None, ...]:
    """(1, 2, ..., num_rates), or (None,) for a single-rate checkpoint."""
    return tuple(range(1, self.config.num_rates + 1)) or (None,)

  def choose_quality(self, quality: float | None) -> float | None:
    """The quality that `encode` takes, a float32 as in a file. QualityError when the checkpoint does not have it."""
    return self.coder.choose_quality(quality)

  # --- encoding -------------------------------------------------------------------------

  def encode(self, image: AnyPicture, quality: float | None = None, icc_profile: bytes | None = None, *,
             chunked: bool | None = None, portable: bool | None = None, skip: float | None = None,
             refine: Schedule | int | str | None = None, lmbda: float | None = None) -> bytes:
    """The .mlic file of an image of any size.

    Args:
      image: (H, W, 3) uint8, floats in [0, 1], or what PIL.Image.open returns; data.image_io.as_picture says how floats
        are rounded, and what becomes of other colors than RGB.
      quality: of a variable-rate checkpoint; see the class.
      icc_profile: the color profile, which the file then carries; it does not change what is coded. None takes that of
        a Pillow image.
      chunked, portable, skip, refine, lmbda: options for this image, see EncodeOptions; None: those of the codec.

    QualityError; ImageError for what is no image; BitstreamError for an image or profile that is too large;
    MemoryLimitError for one that this machine has no memory for; SkipError and RefineError for options that cannot be.
    """
    given = dict(chunked=chunked, portable=portable, skip=skip, refine=refine, lmbda=lmbda)
    changes = {name: value for name, value in given.items() if value is not None}
    codec = self.with_options(**changes) if changes else self
    return codec._encode(image, quality, icc_profile).blob

  def encode_many(self, images: Iterable[AnyPicture], quality: float | None = None,
                  advance: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The file of each image, in their order, each when it is asked for; `advance` is called after each.

    Images are coded one at a time, although a batch would fill an accelerator better: its floats differ in their last
    bits from those of one image, and a file should not depend on what was coded beside it. Compiled functions are
    cached for the last few padded sizes (runtime/shape_cache.py), so images of many sizes are best sorted by size.
    """
    for image in images:
      yield self.encode(image, quality)
      advance()

  def encode_with_reconstruction(self, image: AnyPicture, quality: float | None = None,
                                 icc_profile: bytes | None = None) -> tuple[bytes, np.ndarray]:
    """The file, and the image (H, W, 3) uint8 that `decode` will make of it, bit for bit on this machine."""
    encoded = self._encode(image, quality, icc_profile)
    return encoded.blob, encoded.reconstruct()

  def encode_with_bits(self, image: AnyPicture, quality: float | None = None,
                       ) -> tuple[bytes, np.ndarray, Callable[[], float]]:
    """The file, the image that `decode` will make of it, and a function that returns the bits of `estimate`, computed
    from the passes of the encoder."""
    encoded = self._encode(image, quality)
    return encoded.blob, encoded.reconstruct(), lambda: _sum(*self.coder.bits(encoded.z_symbols, encoded.passes))

  def latents(self, image: AnyPicture, quality: float | None = None) -> Latents:
    """The latents that are coded for an image: those of the analysis transform, or optimized ones where their file is
    better. Arguments and errors as in `encode`."""
    return self._latents_and_file(as_picture(image).image, quality)[0]

  def encode_latents(self, latents: Latents, icc_profile: bytes | None = None) -> bytes:
    """The .mlic file of given latents, such as `latents` returns, or better ones for the same image.

    LatentError when the arrays are not those of this codec or not finite."""
    return self.coder.encode(latents, self.options, icc_profile).blob

  def encode_latents_with_reconstruction(self, latents: Latents,
                                         icc_profile: bytes | None = None) -> tuple[bytes, np.ndarray]:
    """The file of given latents, and the image (H, W, 3) uint8 that `decode` will make of it."""
    encoded = self.coder.encode(latents, self.options, icc_profile)
    return encoded.blob, encoded.reconstruct()

  def estimate(self, image: AnyPicture, quality: float | None = None) -> tuple[float, np.ndarray]:
    """Bits by the likelihoods of the model, and the image (H, W, 3) uint8 that `decode` would give, without coding."""
    latents = self.latents(image, quality)
    z_symbols, passes, last_pass = self.coder.run_encoder(latents, self.options)
    return _sum(*self.coder.bits(z_symbols, passes)), self.coder.synthesize(last_pass, *latents[2:])

  def element_bits(self, image: AnyPicture, quality: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The bits of `estimate`, element by element: of y (h, w, M) and of z (h/4, w/4, N); see Latents."""
    z_symbols, passes, _ = self.coder.run_encoder(self.latents(image, quality), self.options)
    return self.coder.bits(z_symbols, passes)

  def has_compiled(self, height: int, width: int) -> bool:
    """Whether an image of that padded size was encoded and decoded recently, so that nothing is compiled for it."""
    refined = self.options.refine is None or self.optimizer.has_compiled(height, width)
    return refined and self.coder.has_compiled(height, width)

  # --- latent optimization --------------------------------------------------------------

  @functools.cached_property
  def optimizer(self):
    """The LatentOptimizer of these options. RefineError without `refine`."""
    from mlic_jax.coding.latent_optimizer import LatentOptimizer  # which imports optax
    if self.options.refine is None:
      raise RefineError(f"{self.name} does not optimize latents; wanted with_options(refine=...)")
    return LatentOptimizer(self.coder, Schedule.of(self.options.refine), self.options.lmbda)

  def objective(self, quality: float | None) -> tuple[str, float]:
    """The distortion that latents are optimized for, and its weight at a quality. RefineError when none is known."""
    return self.optimizer.objective(quality)

  def check(self, height: int, width: int) -> None:
    """MemoryLimitError or RefineError for an image that cannot be encoded, before the work."""
    check_memory(self.config, height, width)
    if self.options.refine is not None:
      self.optimizer.check(height, width)

  def _encode(self, image: AnyPicture, quality: float | None, icc_profile: bytes | None = None) -> Encoded:
    image, own_profile, _ = as_picture(image)
    latents, encoded = self._latents_and_file(image, quality, icc_profile or own_profile)
    return encoded or self.coder.encode(latents, self.options, icc_profile or own_profile)

  def _latents_and_file(self, image: np.ndarray, quality: float | None,
                        icc_profile: bytes | None = None) -> tuple[Latents, Encoded | None]:
    """The latents that are coded, and their file where it had to be made to choose them."""
    if self.options.refine is None:
      return self.coder.analyze(image, quality), None
    candidates = self.optimizer.candidates(image, quality, self.progress)
    files = [(latents, self.coder.encode(latents, self.options, icc_profile)) for latents in candidates]
    loss = lambda encoded: self.optimizer.loss_of_file(image, quality, encoded.blob, encoded.reconstruct())
    return min(files, key=lambda file: loss(file[1]))

  # --- decoding -------------------------------------------------------------------------

  def decode(self, blob: Buffer, slices: int | None = None, partial: bool = False,
             pixels_max: int = bitstream.PIXELS_MAX) -> np.ndarray:
    """The image (H, W, 3) uint8 in a .mlic file.

    Args:
      blob: the file, as bytes or another buffer of them.
      slices: decode only so many, 0 to num_slices; the others are what the entropy model predicts. None for all.
      partial: take a file that was cut short or is damaged in a slice, and decode the slices before that position.
      pixels_max: refuse larger images.

    BitstreamError when the file is none, damaged, or of another checkpoint, and PortabilityError, which is one, when
    this machine computes too far from the one that wrote it; MemoryLimitError when it has no memory for the image.
    """
    content = bitstream.parse(_as_bytes(blob), pixels_max, partial)
    came: object = slices  # whatever a caller has
    if slices is not None and not (isinstance(came, numbers.Integral) and 0 <= slices <= content.num_slices):
      raise BitstreamError(f"slices={slices!r} came, the file has 0 to {content.num_slices}")
    arrived = content.num_arrived
    return self.coder.decode(content, arrived if slices is None else min(slices, arrived))

  def decode_many(self, blobs: Iterable[Buffer], advance: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
    """The image (H, W, 3) uint8 of each file, in their order, each when it is asked for. Errors as in `decode`."""
    for blob in blobs:
      yield self.decode(blob)
      advance()

  def decode_progressively(self, blob: Buffer) -> Iterator[tuple[int, np.ndarray]]:
    """The images that a receiver sees while a file arrives: (bytes received, image (H, W, 3) uint8) for 0, 1, ..., all
    slices.

    A file with a single chunk has nothing to show before its end, so it gives one pair. Errors as in `decode`.
    """
    blob = _as_bytes(blob)
    content, ends = bitstream.parse(blob), bitstream.chunk_ends(blob)
    for slices, end in zip(range(content.num_slices + 1)[-len(ends):], ends):
      yield end, self.coder.decode(content, slices)


def _as_bytes(blob: Buffer) -> bytes:
  """BitstreamError for what is no buffer of bytes, such as the path of a file."""
  if isinstance(blob, bytes):
    return blob
  try:
    return memoryview(blob).tobytes()
  except TypeError:
    hint = "; the bytes of a file are Path(path).read_bytes()" if isinstance(blob, str | os.PathLike) else ""
    raise BitstreamError(f"{type(blob).__name__} came; wanted the bytes of a .mlic file{hint}") from None


def _sum(y_bits: np.ndarray, z_bits: np.ndarray) -> float:
  return float(y_bits.sum(dtype=np.float64) + z_bits.sum(dtype=np.float64))
