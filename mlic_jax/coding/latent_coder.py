"""LatentCoder: codes the latents of images with one trained model, and runs its transforms.

    image (H, W, 3) uint8 -> pad -> g_a, h_a -> z, y --passes--> range coder -> bitstream -> bytes
    bytes -> bitstream -> range decoder --passes--> y_hat -> g_s -> crop -> image

Encoder and decoder share one loop over the passes, `_passes`, and the compiled functions that it calls
(jit_functions.py). Another implementation of the prior would differ in the last bits, which may select another CDF row
and turn every later symbol into garbage; portable_cdf.py handles other machines. The loop calls a function that
differs: the encoder chooses rows and computes symbols, the decoder reads grids and symbols from the stream.

A missing slice is decoded like any other, with zeros for symbols. It becomes the prediction of its prior.
"""
import copy
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.coding import bitstream, jit_functions, portable_cdf, rangecoder, skip_coding
from mlic_jax.coding.bitstream import Bitstream, BitstreamError, PortabilityError
from mlic_jax.coding.cdf_tables import z_rows
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.latents import LatentError, Latents, QualityError, check_quality
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.coding.rangecoder import Decoder, Encoder
from mlic_jax.coding.tile_devices import finished
from mlic_jax.model import selection_map
from mlic_jax.model.distributions import make_distribution
from mlic_jax.model.mlic import build, side_multiple

# (slice index, True for anchors, table positions (1, h, w/2, Cs), prior) -> int32 symbols (1, h, w/2, Cs)
CodePass = Callable[[np.int32, bool, jax.Array, object], np.ndarray]
# Symbols, mask of coded elements (None: all), scale and further parameters of the distribution; (1, h, w/2, Cs) each.
Pass = tuple[np.ndarray | jax.Array, np.ndarray | None, tuple[jax.Array, ...]]


class Encoded(NamedTuple):
  """A file, with the symbols and scales that the encoder computed."""
  blob: bytes
  z_symbols: np.ndarray                  # (1, h/4, w/4, N) int32
  passes: list[Pass]
  reconstruct: Callable[[], np.ndarray]  # returns the decoded image (H, W, 3) uint8, on this machine bit for bit


class CodedLatents(NamedTuple):
  """The content of a file without a color profile, and intermediate results of the encoder."""
  content: Bitstream
  z_symbols: np.ndarray                  # (1, h/4, w/4, N) int32
  passes: list[Pass]
  last_pass: tuple                       # the result of `run_passes`


class Job(NamedTuple):
  """The coding of one image or tile, which `run_jobs` runs."""
  z_symbols: np.ndarray                  # (1, h/4, w/4, N) int32
  code_pass: CodePass
  finish: Callable[[tuple], Any]         # is called with the result of `run_passes`, and returns that of the job


class LatentCoder:
  """Maps images to latents, latents to files and files to images, with one model.

  `range_coder` is "numba" or "tfc", which write and read the same bytes (rangecoder.py). None: the installed one that
  starts faster.
  """

  def __init__(self, model: Model, range_coder: str | None = None):
    self.distribution = make_distribution(model.config)
    if not self.distribution.num_shapes:
      range_coder = rangecoder.choose_for_elements(range_coder, model.config.distribution)
    self.range_coder = rangecoder.choose(range_coder)
    self.name, self.config, self.fingerprint = model.name, model.config, model.fingerprint
    self.training, self.allow_custom_modules = model.training, model.allow_custom_modules
    self.module = build(model.config)
    self.variables, self.table = jax.device_put(model.variables), model.table
    self._rows = rangecoder.prepare(self.table)
    self.has_map = selection_map.has_map(model.config)
    self._side_multiple = side_multiple(model.config)

  def on_device(self, device: jax.Device) -> "LatentCoder":
    """Returns a coder of the same model that computes on a device."""
    other = copy.copy(self)
    other.variables = jax.device_put(self.variables, device)
    return other

  # --- images and latents ---------------------------------------------------------------

  def analyze(self, image: np.ndarray, quality: float | None) -> Latents:
    """Applies the analysis transforms to an image (H, W, 3) uint8.

    QualityError if the model does not have the quality; BitstreamError if the image is too large; MemoryLimitError if
    it needs more memory than is free."""
    height, width = image.shape[:2]
    bitstream.check_size(height, width, pixels_max=2**64)
    quality = self.choose_quality(quality)
    check_memory(self.config, height, width)
    y, z = jit_functions.analyze(self.module, self.variables, self.pad(image), quality)
    return Latents(y, z, height, width, quality)

  def pad(self, image: np.ndarray) -> np.ndarray:
    """Repeats the right and lower edge of an image up to a multiple of the stride: (H, W, 3) to (1, H', W', 3)."""
    missing = [(0, -side % self._side_multiple) for side in image.shape[:2]]
    return np.pad(image, (*missing, (0, 0)), mode="edge")[None]

  def z_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns height and width of z for an image of height x width pixels."""
    return -(-height // self._side_multiple), -(-width // self._side_multiple)

  def choose_quality(self, quality: float | None) -> float | None:
    """Returns the coded quality, a float32 as in a file; None gives the middle of the range.

    QualityError if the model does not have the quality."""
    if quality is None and self.config.num_rates:
      quality = (1 + self.config.num_rates) / 2
    return check_quality(quality, self.config.num_rates, self.name)

  def has_compiled(self, height: int, width: int) -> bool:
    """Whether encoding and decoding an image of this size compiles nothing: its padded size was coded recently."""
    h, w = self.z_size(height, width)
    side = self._side_multiple
    return (jit_functions.analyze.is_cached((1, h * side, w * side, 3), self.module)
            and jit_functions.finish.is_cached((1, 4 * h, 4 * w, 2 * self.config.M), self.module))

  # --- latents to files -----------------------------------------------------------------

  def encode(self, latents: Latents, options: EncodeOptions, icc_profile: bytes | None = None) -> Encoded:
    """Encodes latents to a .mlic file. LatentError unless they are finite and have the shapes of this model."""
    content, z_symbols, passes, last_pass = self.code(latents, options)
    reconstruct = functools.cache(lambda: self.synthesize(last_pass, *latents[2:]))
    return Encoded(bitstream.write(content._replace(icc_profile=icc_profile)), z_symbols, passes, reconstruct)

  def code(self, latents: Latents, options: EncodeOptions, inside: np.ndarray | None = None) -> CodedLatents:
    """Encodes latents to the content of a file; `inside` as of skip_coding.restrict. LatentError as in `encode`."""
    return self.run_jobs([self.encoding(latents, options, inside)])[0]

  def encoding(self, latents: Latents, options: EncodeOptions, inside: np.ndarray | None = None) -> Job:
    """Returns the job whose result is that of `code`. LatentError as in `encode`."""
    y, _, height, width, quality = latents
    origin, use_map = self._origin(options), options.use_map and self.has_map
    z_symbols, encoders = self.symbols_of_z(latents), [Encoder(self._rows, self.range_coder)]
    encoders[0].encode(z_symbols, self._z_rows(*z_symbols.shape[1:3]))
    slice_symbols, checksums, passes = [], [], list[Pass]()

    def encode_pass(k, anchors, positions, prior):
      if options.chunked and anchors:
        encoders.append(Encoder(self._rows, self.range_coder))
      coding = skip_coding.choose(self.distribution, positions, prior, origin, options.skipped_rows, use_map)
      coding = skip_coding.restrict(coding, inside, anchors)
      symbols = np.asarray(jit_functions.symbols(y, k, prior.mean, anchors))
      symbols = skip_coding.mask_skipped(symbols, coding)
      passes.append((symbols, coding.coded, (prior.scale, *prior.parameters)))
      slice_symbols.append(symbols)
      if origin is not None and not anchors:
        checksums.append(bitstream.symbol_checksum(*slice_symbols[-2:]))
      skip_coding.encode(encoders[-1], symbols, coding)
      return skip_coding.mark_skipped(symbols, coding, self.config)

    def finish(last_pass):
      content = Bitstream(
          self.fingerprint, height, width, None if quality is None else float(quality), self.config.num_slices,
          tuple(encoder.finish() for encoder in encoders), not options.chunked, None, origin, tuple(checksums),
          options.skipped_rows, use_map)
      return CodedLatents(content, z_symbols, passes, last_pass)

    return Job(z_symbols, encode_pass, finish)

  def run_encoder(self, latents: Latents, options: EncodeOptions,
                  inside: np.ndarray | None = None) -> tuple[np.ndarray, list[Pass], tuple]:
    """Runs the passes of `code` without range coding; returns symbols of z, passes and the input of `synthesize`."""
    origin, use_map, passes = self._origin(options), options.use_map and self.has_map, []
    z_symbols = self.symbols_of_z(latents)

    def record_pass(k, anchors, positions, prior):
      symbols, coding = jit_functions.symbols(latents.y, k, prior.mean, anchors), None
      if options.skipped_rows or use_map or inside is not None:
        coding = skip_coding.choose(self.distribution, positions, prior, origin, options.skipped_rows, use_map)
        coding = skip_coding.restrict(coding, inside, anchors)
        symbols = skip_coding.mask_skipped(np.asarray(symbols), coding)
      passes.append((symbols, coding and coding.coded, (prior.scale, *prior.parameters)))
      return skip_coding.mark_skipped(np.asarray(symbols), coding, self.config)

    return z_symbols, passes, self.run_passes(z_symbols, record_pass)

  def bits(self, z_symbols: np.ndarray, passes: Sequence[Pass]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits by the likelihoods of the model, per element: of y (h, w, M) and of z (h/4, w/4, N)."""
    pass_bits = []
    for i, (symbols, coded, parameters) in enumerate(passes):
      coded = np.ones(symbols.shape, bool) if coded is None else coded
      bits = jit_functions.y_bits(self.module, symbols, coded, parameters, np.bool_(i % 2 == 0))
      pass_bits.append(np.asarray(bits)[0])
    slice_bits = [anchors + nonanchors for anchors, nonanchors in zip(pass_bits[::2], pass_bits[1::2])]
    z_bits = jit_functions.z_bits(self.module, self.variables, z_symbols)
    return np.concatenate(slice_bits, axis=-1), np.array(z_bits)[0]

  def symbols_of_z(self, latents: Latents) -> np.ndarray:
    """Returns the int32 symbols of z, (1, h/4, w/4, N).

    LatentError unless the latents are finite and have the shapes of this model."""
    h, w = self.z_size(latents.height, latents.width)
    wanted = (1, 4 * h, 4 * w, self.config.M), (1, h, w, self.config.N)
    if (shapes := (latents.y.shape, latents.z.shape)) != wanted:
      raise LatentError(f"{self.name}: y and z have the shapes {shapes}; "
                        f"wanted {wanted} for an image of {latents.height}x{latents.width}")
    z_symbols, finite = jit_functions.round_z(self.module, self.variables, latents.y, latents.z)
    if not finite:
      raise LatentError(f"{self.name}: the latents of the image are not finite, so it cannot be coded")
    return np.asarray(z_symbols)

  # --- files to images ------------------------------------------------------------------

  def decode(self, content: Bitstream, num_slices: int) -> np.ndarray:
    """Decodes the image (H, W, 3) uint8 from z and the first `num_slices` slices of a parsed file.

    BitstreamError if the file is damaged or written with another model; PortabilityError if the arithmetic of this
    machine differs too much from that of the encoder; MemoryLimitError if the image needs more memory than is free."""
    quality = self.check_content(content)
    check_memory(self.config, content.height, content.width)
    last_pass, = self.run_jobs([self.decoding(content, num_slices)])
    return self.synthesize(last_pass, content.height, content.width, quality)

  def decoding(self, content: Bitstream, num_slices: int, inside: np.ndarray | None = None) -> Job:
    """Returns the job that decodes the passes of a file that `check_content` has accepted, whose result `synthesize`
    takes. `inside` as of skip_coding.restrict. Errors as in `decode`."""
    decoders = [Decoder(self._rows, chunk, self.range_coder) for chunk in content.chunks[:1 + num_slices]]
    z_symbols = decoders[0].decode(self._z_rows(*self.z_size(content.height, content.width)))
    slice_symbols = []

    def decode_pass(k, anchors, positions, prior):
      if k >= num_slices:
        return np.zeros(positions.shape, np.int32)
      decoder = decoders[0 if content.single_chunk else 1 + k]
      coding = skip_coding.read_choice(self.distribution, decoder, positions, prior, content)
      coding = skip_coding.restrict(coding, inside, anchors)
      symbols = skip_coding.decode(decoder, coding)
      slice_symbols.append(symbols)
      if content.origin is not None and not anchors:
        portable_cdf.check_symbols(content, k, slice_symbols[-2:])
      return skip_coding.mark_skipped(symbols, coding, self.config)

    def finish(last_pass):
      if num_slices == content.num_slices or not content.single_chunk:
        for decoder in decoders:
          decoder.finish()
      return last_pass

    return Job(z_symbols, decode_pass, finish)

  def synthesize(self, last_pass: tuple, height: int, width: int, quality: float | None) -> np.ndarray:
    """Computes the image (height, width, 3) uint8 from the result of `run_passes`. The array is writable."""
    x_hat = jit_functions.finish(self.module, self.variables, *last_pass, quality)
    return np.array(np.asarray(x_hat)[0, :height, :width])

  def run_passes(self, z_symbols: np.ndarray, code_pass: CodePass) -> tuple:
    """Codes all passes by `code_pass` and returns the input of `synthesize`."""
    return finished(self._passes(z_symbols, code_pass))

  def run_jobs(self, jobs: Sequence[Job]) -> list:
    """Runs jobs of one size as a batch, and returns their results.

    The floats of a batch differ in the last bits from those of a single job, as those of another machine do. Only the
    rows of portable files agree then."""
    return finished(self.running(jobs))

  def running(self, jobs: Sequence[Job]) -> Generator[None, None, list]:
    """Runs jobs as `run_jobs` does, and yields whenever the device has work, before it awaits the result."""
    if len(jobs) == 1:
      last_pass = yield from self._passes(*jobs[0][:2])
      return [jobs[0].finish(last_pass)]
    part = lambda arrays, i: jax.tree.map(lambda each: each[i:i + 1], arrays)

    def code_pass(k, anchors, positions, prior):
      of_job = lambda i: jobs[i].code_pass(k, anchors, positions[i:i + 1], part(prior, i))
      return np.concatenate(list(map(of_job, range(len(jobs)))))

    k, *of_jobs = yield from self._passes(np.concatenate([job.z_symbols for job in jobs]), code_pass)
    return [job.finish((k, *part(of_jobs, i))) for i, job in enumerate(jobs)]

  def _passes(self, z_symbols: np.ndarray, code_pass: CodePass) -> Generator[None, None, tuple]:
    """Runs the passes as `run_passes` does, and yields before each of them, when its prior is dispatched."""
    model = self.module, self.variables
    hyper, positions, prior, state = jit_functions.start(*model, z_symbols)
    symbols = np.zeros(0, np.int32)  # for the type checker: there is at least one pass
    for k in np.arange(self.config.num_slices, dtype=np.int32):
      yield
      symbols = code_pass(k, True, positions, prior)
      positions, prior, state = jit_functions.nonanchors(*model, k, hyper, state, symbols)
      yield
      symbols = code_pass(k, False, positions, prior)
      if k < self.config.num_slices - 1:
        positions, prior, state = jit_functions.advance(*model, k, hyper, state, symbols)
    return k, hyper, state, symbols

  def check_content(self, content: Bitstream) -> float | None:
    """Returns the quality of a file. BitstreamError unless the file can have been written with this model."""
    if content.fingerprint != self.fingerprint:
      needed = "" if self.config.distribution == "gaussian" else f", of the distribution {self.config.distribution}"
      raise BitstreamError(f"the file was written with checkpoint {content.fingerprint.hex()}; "
                           f"{self.name} is {self.fingerprint.hex()}{needed}")
    if content.num_slices != self.config.num_slices:
      raise BitstreamError(f"the file is damaged: it has {content.num_slices} slices; "
                           f"{self.name} has {self.config.num_slices}")
    if content.uses_map and not self.has_map:
      raise BitstreamError(f"the file is damaged: it uses a selection map, but {self.name} has none")
    try:
      return check_quality(content.quality, self.config.num_rates, self.name)
    except QualityError as error:
      raise BitstreamError(f"the file is damaged: {error}") from None

  def _origin(self, options: EncodeOptions) -> bitstream.Origin | None:
    if options.portable and (reason := self.distribution.not_portable):
      raise PortabilityError(f"{self.name}: the distribution {self.config.distribution} has no portable files "
                             f"({reason}); wanted portable=False (--no-portable)")
    return portable_cdf.origin_of_this_machine(self.config) if options.portable else None

  def _z_rows(self, h: int, w: int) -> np.ndarray:
    return np.broadcast_to(z_rows(self.config), (1, h, w, self.config.N))
