"""A codec with the interface of mlic_jax.Codec whose files are valid and hold no pixels, for tests of the commands."""
import numpy as np

from mlic_jax.coding import bitstream

DEFAULT = dict(chunked=True, portable=True, skip=None, refine=None, lmbda=None, tile=None)


class EmptyCodec:
  name, fingerprint, qualities = "stand-in", b"8 bytes.", (1, 2, 3)

  def with_options(self, **options):
    """Checks other options than those of a command without any. The check imports jax, which takes half a second."""
    if options != DEFAULT:
      from mlic_jax.coding.encode_options import EncodeOptions
      EncodeOptions(**options)
    return self

  def choose_quality(self, quality):
    return quality

  def tile_side(self, height, width):
    return 0

  def has_compiled(self, height, width):
    return True

  def encode(self, image, quality=None, icc_profile=None, **changes):
    return bitstream.write(bitstream.Bitstream(self.fingerprint, *image.shape[:2], 1.0, 1, (b"z", b"y"),
                                               icc_profile=icc_profile))

  def decode(self, blob, slices=None, partial=False, pixels_max=0):
    content = bitstream.parse(blob)
    return np.zeros((content.height, content.width, 3), np.uint8)
