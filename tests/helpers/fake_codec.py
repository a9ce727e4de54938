"""A codec with the interface of mlic_jax.Codec that stores JPEG, so that its results can be checked by hand."""
import copy

import numpy as np

from mlic_jax.coding.checkpoint_io import CheckpointError
from mlic_jax.coding.encode_options import EncodeOptions
from mlic_jax.coding.memory_estimate import check_memory
from mlic_jax.config import CodecConfig
from mlic_jax.evaluation import baselines
from mlic_jax.evaluation.bit_maps import BitsMap

# The smallest there is, for the figures of cost alone.
CONFIG = CodecConfig(N=4, M=4, num_slices=2, contexts=(), entropy_widths=(4, 4), lrp_widths=())


class FakeCodec:
  """JPEG of quality 10 * quality, whose estimate is always 40 bits below the file. Skipping is four steps less, latent
  optimization half a step more."""
  model_name = "fake"
  options = EncodeOptions()
  fingerprint = b"fake"
  qualities = (1, 2, 3, 4, 5, 6)
  config = CONFIG

  def __init__(self):
    self.encoded = []                                    # (image shape, quality) of every call

  @classmethod
  def load(cls, path, coder=None, allow_custom_modules=False):
    if path == "missing":
      raise CheckpointError("missing: no such directory; wanted a model directory")
    return cls()

  @property
  def name(self):
    return self.model_name + self.options.suffix()

  def with_options(self, **changes):
    other = copy.copy(self)
    other.encoded, other.options = [], self.options.replace(**changes)
    return other

  def check(self, height, width):
    check_memory(self.config, height, width)
    if self.options.refine is not None and height == 13:
      raise CheckpointError("13 lines cannot be refined")

  def tile_side(self, height, width):
    return self.options.tile

  def objective(self, quality):
    return "mse", self.options.lmbda or 0.01

  def encode_with_reconstruction(self, image, quality):
    self.encoded.append((image.shape, quality))
    blob = baselines.encode_jpeg(image, self._jpeg_quality(quality) - (4 if self.options.skip else 0))
    return blob, baselines.decode(blob)

  def _jpeg_quality(self, quality):
    return int(10 * ((quality or 5) + (0.5 if self.options.refine else 0)))

  def encode_with_bits(self, image, quality):
    return *self.encode_with_reconstruction(image, quality), lambda: self.estimate(image, quality)[0]

  def has_compiled(self, height, width):
    """Pretends to compile for every size in multiples of 64."""
    blocks = lambda height, width, *_: (-(-height // 64), -(-width // 64))
    return blocks(height, width) in {blocks(*shape) for shape, _ in self.encoded}

  def decode(self, blob):
    return baselines.decode(blob)

  def decode_progressively(self, blob):
    """A third of the file brings a black image, two thirds its left half, all of it the image."""
    image = baselines.decode(blob)
    for slices in range(self.config.num_slices + 1):
      arrived = image.copy()
      arrived[:, slices * image.shape[1] // self.config.num_slices:] = 0
      yield len(blob) * (slices + 1) // (self.config.num_slices + 1), arrived

  def estimate(self, image, quality):
    blob = baselines.encode_jpeg(image, self._jpeg_quality(quality))
    return 8.0 * len(blob) - 40, baselines.decode(blob)


class SingleRateCodec(FakeCodec):
  """JPEG of the quality in its name, which is the checkpoint's: family_q30."""
  qualities = (None,)

  @classmethod
  def load(cls, path, coder=None, allow_custom_modules=False):
    codec = super().load(path)
    codec.model_name = path
    return codec

  def encode_with_reconstruction(self, image, quality):
    return super().encode_with_reconstruction(image, self._quality)

  def estimate(self, image, quality):
    return super().estimate(image, self._quality)

  @property
  def _quality(self):
    digits = self.model_name.rpartition("_q")[2]
    return int(digits) / 10 if digits.isdecimal() else 5


class WrongDecoder(FakeCodec):
  def decode(self, blob):
    image = baselines.decode(blob)
    image[3, 4, 1] ^= 1                                  # one sample, by one
    return image


class CoderIsNotToBeUsed(FakeCodec):
  def encode_with_reconstruction(self, image, quality):
    raise AssertionError("--estimate codes")


def bits_of(image, quality):
  """3 bits at every place of y in slice 0 and 1 in slice 1, 16 at every place of z."""
  h, w = (-(-side // 64) * 4 for side in image.shape[:2])
  return BitsMap(np.tile([3.0, 1.0], (h, w, 1)), np.full((h // 4, w // 4), 16.0))
