"""Codec: pictures to bytes and back, with a trained model.

    image (H, W, 3) uint8 -> pad -> g_a, h_a -> z, y --passes--> range coder -> bitstream -> bytes
    bytes -> bitstream -> range decoder --passes--> y_hat -> g_s -> crop -> image

The encoder and the decoder walk the passes in one function, `Codec._walk`, and call the same compiled functions in it
(compiled.py). A prior that is computed elsewhere differs in its last bits; where that picks another row of the coding
table, every later symbol decodes to garbage. portable.py has what is done about it. What they do with a pass (choose
its rows, and compute its symbols, or pull them from the stream) they do outside.

A slice that did not arrive is decoded like any other, with zeros for symbols: it is then what its prior predicts from
the slices before it.
"""
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from mlic_jax.coding import bitstream, jit_functions, portable_cdf, rangecoder, skip_coding
from mlic_jax.coding.bitstream import Bitstream, BitstreamError
from mlic_jax.coding.cdf_tables import z_rows
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.latents import LatentError, Latents, QualityError, check_quality
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.coding.portable_cdf import here
from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.data.image_io import AnyPicture, as_picture
from mlic_jax.model import selection_map
from mlic_jax.model.mlic import build, side_multiple
from mlic_jax.runtime import compilation_cache


class Codec:
  """A trained model that writes and reads .mlic files, one picture at a time.

  A variable-rate checkpoint has qualities 1 to num_rates, and fractions between them, kept to 1/256; without one it
  takes the middle of the range. A single-rate checkpoint has no quality: it is None.

  `coder` is the range coder, "numba" or "tfc", which write and read the same bytes (rangecoder.py); None for the one of
  those installed that starts faster.
  """

  def __init__(self, model: Model, coder: str | None = None):
    self.coder = rangecoder.choose(coder)
    self.name, self.config, self.fingerprint = model.name, model.config, model.fingerprint
    self.plain_name = self.name     # the same of what `skipping` and `refining` give
    self._module = build(model.config)
    self._variables, self._table = jax.device_put(model.variables), model.table
    self.skipped, self.skips_up_to = 0, None  # rows of it whose elements are left out, and their scale: selective.py
    self.mapped = selection_map.has_map(model.config)  # elements that the model predicts as not worth it are left out
    self.training = model.training  # what the run was, or None
    self._side_multiple = side_multiple(model.config)

  @classmethod
  def load(cls, path: str | os.PathLike, coder: str | None = None) -> "Codec":
    """The codec of a model directory; CheckpointError if it is none. Turns the compilation cache on."""
    compilation_cache.enable()
    return cls(load_model(path), coder)

  @property
  def variables(self) -> dict:
    """{"params": ...}, on the device."""
    return self._variables

  @property
  def qualities(self) -> tuple[int | None, ...]:
    """(1, 2, ..., num_rates), or (None,) for a single-rate checkpoint."""
    return tuple(range(1, self.config.num_rates + 1)) or (None,)

  def encode(self, image: AnyPicture, quality: float | None = None, icc_profile: bytes | None = None,
             chunked: bool = True, portable: bool = True, refine: int | str | None = None,
             lmbda: float | None = None) -> bytes:
    """The .mlic file of a picture of any size.

    Args:
      image: (H, W, 3) uint8, floats in [0, 1], or what PIL.Image.open gives; data.images.as_picture says how floats are
        rounded, and what becomes of other colours than RGB.
      quality: of a variable-rate checkpoint; see the class.
      icc_profile: its colour profile, which the file then carries; it does not change what is coded. None takes that of
        a Pillow picture.
      chunked: a chunk for z and each slice, for progressive decoding; otherwise one for all, some 40 bytes less.
      portable: decodes where the arithmetic differs in the last bits; otherwise only where it is the same, bit for bit.
      refine: how long to optimise the latents for this picture: steps, or a time as "50s"; see `refining`.
      lmbda: weight of the distortion in that; None for that of the quality.

    QualityError; ImageError for what is no picture; BitstreamError for a picture or profile that is too large,
    MemoryLimitError for one that this machine has no memory for; RefineError.
    """
    if refine is not None:
      return self.refining(refine, lmbda).encode(image, quality, icc_profile, chunked, portable)
    image, own_profile, _ = as_picture(image)
    return self.encode_latents(self.latents(image, quality), icc_profile or own_profile, chunked, portable)

  def encode_many(self, images: Iterable[AnyPicture], quality: float | None = None, chunked: bool = True,
                  portable: bool = True, advance: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The file of each picture, in their order, each when it is asked for; `advance` is called after each.

    One at a time, although a batch would fill an accelerator better: its floats differ in their last bits from those of
    one picture, and a file should not depend on what was coded beside it. What is compiled is kept for the padded sizes
    that came last (runtime/shape_cache.py): pictures of many sizes are best sorted by them.
    """
    for image in images:
      yield self.encode(image, quality, chunked=chunked, portable=portable)
      advance()

  def refining(self, *settings) -> "Codec":
    """The same codec, which optimises latents for each picture; RefinedCodec has the arguments. Its files decode as
    any others, and none is worse than without, by rate and distortion together."""
    from mlic_jax.coding.latent_optimized_codec import RefinedCodec  # which needs optax
    return RefinedCodec(self, *settings)

  def skipping(self, scale: float) -> "Codec":
    """The same codec, whose files are without elements of y with a scale up to `scale`; see selective.py."""
    return skip_coding.skipping(self, scale)

  def latents(self, image: AnyPicture, quality: float | None = None) -> Latents:
    """What the encoder network makes of a picture. Arguments and errors as in `encode`."""
    image = as_picture(image).image
    height, width = image.shape[:2]
    bitstream.check_size(height, width, pixels_max=2**64)
    quality = self.choose_quality(quality)
    check_memory(self.config, height, width)
    y, z = jit_functions.analyse(self._module, self._variables, self._pad(image), quality)
    return Latents(y, z, height, width, quality)

  def encode_latents(self, latents: Latents, icc_profile: bytes | None = None, chunked: bool = True,
                     portable: bool = True) -> bytes:
    """The .mlic file of given latents, such as `latents` returns, or better ones for the same picture.

    Arguments as in `encode`; LatentError when the arrays are not those of this codec or not finite."""
    return self._encode(latents, icc_profile, chunked, here(self.config) if portable else None)[0]

  def encode_with_reconstruction(self, image: AnyPicture, quality: float | None = None,
                                 icc_profile: bytes | None = None, chunked: bool = True,
                                 portable: bool = True) -> tuple[bytes, np.ndarray]:
    """The file, and the picture (H, W, 3) uint8 that `decode` will make of it, bit for bit on this machine."""
    image, own_profile, _ = as_picture(image)
    return self.encode_latents_with_reconstruction(self.latents(image, quality), icc_profile or own_profile, chunked,
                                                   portable)

  def encode_latents_with_reconstruction(self, latents: Latents, icc_profile: bytes | None = None, chunked: bool = True,
                                         portable: bool = True) -> tuple[bytes, np.ndarray]:
    """The same of given latents."""
    blob, finish = self._encode(latents, icc_profile, chunked, here(self.config) if portable else None)
    return blob, finish()

  def encode_with_bits(self, image: AnyPicture, quality: float | None = None,
                       ) -> tuple[bytes, np.ndarray, Callable[[], float]]:
    """The file, the picture that `decode` will make of it, and what gives the bits of `estimate`, from the passes of
    the encoder."""
    latents, passes = self.latents(image, quality), []
    blob, finish = self._encode(latents, None, True, here(self.config), passes)
    return blob, finish(), lambda: _sum(*self._bits(self._z_symbols(latents), passes))

  def has_compiled(self, height: int, width: int) -> bool:
    """Whether a picture of that padded size was encoded and decoded lately: then nothing is compiled for this one."""
    h, w = self._blocks(height, width)
    side, module = self._side_multiple, self._module
    return (jit_functions.analyse.is_kept((1, h * side, w * side, 3), module)
            and jit_functions.finish.is_kept((1, 4 * h, 4 * w, 2 * self.config.M), module))

  def decode(self, blob: bytes, slices: int | None = None, partial: bool = False,
             pixels_max: int = bitstream.PIXELS_MAX) -> np.ndarray:
    """The picture (H, W, 3) uint8 in a .mlic file.

    Args:
      blob: the file.
      slices: decode only so many, 0 to num_slices; the others are what the entropy model predicts. None for all.
      partial: take a file that was cut short or is damaged in a slice, and decode the slices before that place.
      pixels_max: refuse larger pictures.

    BitstreamError when the file is none, damaged, or of another checkpoint, and PortabilityError, which is one, when
    this machine computes too far from the one that wrote it; MemoryLimitError when it has no memory for the picture.
    """
    content = bitstream.parse(blob, pixels_max, partial)
    if slices is not None and not 0 <= slices <= content.num_slices:
      raise BitstreamError(f"slices={slices} came, the file has 0 to {content.num_slices}")
    return self._decode(content, content.num_arrived if slices is None else min(slices, content.num_arrived))

  def decode_many(self, blobs: Iterable[bytes], advance: Callable[[], None] = lambda: None) -> Iterator[np.ndarray]:
    """The picture (H, W, 3) uint8 of each file, in their order, each when it is asked for. Errors as in `decode`."""
    for blob in blobs:
      yield self.decode(blob)
      advance()

  def decode_progressively(self, blob: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """What a receiver sees while a file arrives: (bytes received, picture (H, W, 3) uint8) for 0, 1, ..., all slices.

    A file with a single chunk has nothing to show before its end, so it gives one pair. Errors as in `decode`.
    """
    content, ends = bitstream.parse(blob), bitstream.chunk_ends(blob)
    for slices, end in zip(range(content.num_slices + 1)[-len(ends):], ends):
      yield end, self._decode(content, slices)

  def estimate(self, image: AnyPicture, quality: float | None = None) -> tuple[float, np.ndarray]:
    """Bits by the likelihoods of the model, and what `decode` would give (H, W, 3) uint8, without coding."""
    y_bits, z_bits, finish = self._measure(image, quality)
    return _sum(y_bits, z_bits), finish()

  def element_bits(self, image: AnyPicture, quality: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same bits, element by element: of y (h, w, M) and of z (h/4, w/4, N); see Latents."""
    return self._measure(image, quality)[:2]

  def _measure(self, image, quality) -> tuple[np.ndarray, np.ndarray, Callable[[], np.ndarray]]:
    """Bits of y and of z, and the synthesis. The passes are those of the encoder: nothing large is compiled for it."""
    latents, passes = self.latents(image, quality), []
    z_symbols = self._z_symbols(latents)

    def count(k, anchors, places, prior):
      symbols, scale, chosen = jit_functions.symbols(latents.y, k, prior.mean, anchors), prior.scale, None
      if self.skipped or self.mapped:
        chosen = skip_coding.choose(places, prior, here(self.config), self.skipped, self.mapped)
        symbols, scale = skip_coding.leave_out(symbols, scale, chosen)
      passes.append((symbols, scale))
      return skip_coding.marked(np.asarray(symbols), chosen, self.config)

    last_pass = self._walk(z_symbols, count)
    return *self._bits(z_symbols, passes), lambda: self._finish(last_pass, *latents[2:])

  def _bits(self, z_symbols: np.ndarray, passes: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Bits of y and of z, from the symbols and the scales of all passes."""
    of_passes = [np.asarray(jit_functions.y_bits(*each, i % 2 == 0))[0] for i, each in enumerate(passes)]
    slices = [anchors + others for anchors, others in zip(of_passes[::2], of_passes[1::2])]
    z_bits = jit_functions.z_bits(self._module, self._variables, z_symbols)
    return np.concatenate(slices, axis=-1), np.asarray(z_bits)[0]

  def _z_symbols(self, latents: Latents) -> np.ndarray:
    """The symbols of z. LatentError unless the latents are finite, and of this codec."""
    h, w = self._blocks(latents.height, latents.width)
    wanted = (1, 4 * h, 4 * w, self.config.M), (1, h, w, self.config.N)
    if (came := (latents.y.shape, latents.z.shape)) != wanted:
      raise LatentError(f"{self.name}: y and z of a picture of {latents.height}x{latents.width} are {wanted}; "
                        f"{came} came")
    z_symbols, finite = jit_functions.round_z(self._module, self._variables, latents.y, latents.z)
    if not finite:
      raise LatentError(f"{self.name}: the latents of the picture are not finite, it cannot be coded")
    return np.asarray(z_symbols)

  def _encode(self, latents: Latents, icc_profile, chunked, origin, passes: list | None = None,
              ) -> tuple[bytes, Callable[[], np.ndarray]]:
    """The file and the synthesis; the symbols and the scales of each pass are added to `passes`."""
    y, _, height, width, quality = latents
    z_symbols, encoders = self._z_symbols(latents), [Encoder(self._table, self.coder)]
    encoders[0].encode(z_symbols, self._z_rows(*z_symbols.shape[1:3]))
    of_slice, checksums = [], []

    def push(k, anchors, places, prior):
      if chunked and anchors:
        encoders.append(Encoder(self._table, self.coder))
      chosen = skip_coding.choose(places, prior, origin, self.skipped, self.mapped)
      symbols = np.asarray(jit_functions.symbols(y, k, prior.mean, anchors))
      symbols, scale = skip_coding.leave_out(symbols, prior.scale, chosen)
      if passes is not None:
        passes.append((symbols, scale))
      if origin is not None:
        of_slice.append(symbols)
        if not anchors:
          checksums.append(bitstream.symbol_checksum(*of_slice))
          of_slice.clear()
      skip_coding.encode(encoders[-1], symbols, chosen)
      return skip_coding.marked(symbols, chosen, self.config)

    last_pass = self._walk(z_symbols, push)
    stored_quality = None if quality is None else float(quality)
    chunks = tuple(encoder.finish() for encoder in encoders)
    blob = bitstream.write(Bitstream(self.fingerprint, height, width, stored_quality, self.config.num_slices, chunks,
                                     not chunked, icc_profile, origin, tuple(checksums), self.skipped, self.mapped))
    return blob, lambda: self._finish(last_pass, height, width, quality)

  def _decode(self, content: Bitstream, slices: int) -> np.ndarray:
    """The picture from z and the first slices of a parsed file."""
    if content.fingerprint != self.fingerprint:
      raise BitstreamError(f"the file was written with checkpoint {content.fingerprint.hex()}; "
                           f"{self.name} is {self.fingerprint.hex()}")
    if content.num_slices != self.config.num_slices:
      raise BitstreamError(f"the file is damaged: it has {content.num_slices} slices; "
                           f"{self.name} has {self.config.num_slices}")
    if content.mapped and not selection_map.has_map(self.config):
      raise BitstreamError(f"the file is damaged: it goes by a map of coded elements, which {self.name} does not have")
    try:
      quality = self._check_quality(content.quality)
    except QualityError as error:
      raise BitstreamError(f"the file is damaged: {error}") from None
    check_memory(self.config, content.height, content.width)
    decoders = [Decoder(self._table, chunk, self.coder) for chunk in content.chunks[:1 + slices]]
    h, w = self._blocks(content.height, content.width)
    z_symbols = decoders[0].decode(self._z_rows(h, w))
    of_slice = []

    def pull(k, anchors, places, prior):
      if k >= slices:
        return np.zeros(places.shape, np.int32)
      decoder = decoders[0 if content.single_chunk else 1 + k]
      chosen = skip_coding.chosen_by(decoder, places, prior, content)
      symbols = skip_coding.decode(decoder, chosen)
      of_slice.append(symbols)
      if not anchors:
        if content.origin is not None:
          portable_cdf.check_symbols(content, k, of_slice)
        of_slice.clear()
      return skip_coding.marked(symbols, chosen, self.config)

    last_pass = self._walk(z_symbols, pull)
    if slices == content.num_slices or not content.single_chunk:
      for decoder in decoders:
        decoder.finish()
    return self._finish(last_pass, content.height, content.width, quality)

  def _walk(self, z_symbols: np.ndarray, exchange: Callable) -> tuple:
    """Runs all passes; `exchange(k, anchors, places, prior)` codes one and returns its symbols (1, h, w/2, Cs).

    What it returns is for `_finish`.
    """
    apply = self._module, self._variables
    hyper, places, prior, state = jit_functions.start(*apply, z_symbols)
    for k in np.arange(self.config.num_slices, dtype=np.int32):
      symbols = exchange(k, True, places, prior)
      places, prior, state = jit_functions.nonanchors(*apply, k, hyper, state, symbols)
      symbols = exchange(k, False, places, prior)
      if k < self.config.num_slices - 1:
        places, prior, state = jit_functions.advance(*apply, k, hyper, state, symbols)
    return k, hyper, state, symbols

  def _finish(self, last_pass: tuple, height: int, width: int, quality) -> np.ndarray:
    return np.asarray(jit_functions.finish(self._module, self._variables, *last_pass, quality))[0, :height, :width]

  def _blocks(self, height: int, width: int) -> tuple[int, int]:
    """Height and width of z."""
    return -(-height // self._side_multiple), -(-width // self._side_multiple)

  def _pad(self, image: np.ndarray) -> np.ndarray:
    """(1, H', W', 3), the picture with its right and lower edge repeated up to what the transforms can take."""
    missing = [(0, -side % self._side_multiple) for side in image.shape[:2]]
    return np.pad(image, (*missing, (0, 0)), mode="edge")[None]

  def _z_rows(self, h: int, w: int) -> np.ndarray:
    return np.broadcast_to(z_rows(self.config.N), (1, h, w, self.config.N))

  def choose_quality(self, quality: float | None) -> np.float32 | None:
    """The quality that `encode` takes, as a file holds it. QualityError when the checkpoint does not have it."""
    if quality is None and self.config.num_rates:
      quality = (1 + self.config.num_rates) / 2
    return self._check_quality(quality)

  def _check_quality(self, quality: float | None) -> np.float32 | None:
    return check_quality(quality, self.config.num_rates, self.name)


def _sum(y_bits: np.ndarray, z_bits: np.ndarray) -> float:
  return float(y_bits.sum(dtype=np.float64) + z_bits.sum(dtype=np.float64))
