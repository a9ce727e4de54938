"""A file of a wanted size or PSNR: which quality, or which of several checkpoints, gives it.

A variable-rate codec is searched over its qualities, in the steps that a file holds, by halving the range; a
single-rate codec has one file to offer. A codec here is `mlic_jax.Codec`, or anything with its `name`, `qualities`,
`encode` and `encode_with_reconstruction`.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mlic_jax.coding.bitstream import QUALITY_STEPS


class TargetError(ValueError):
  """A size or PSNR that no quality reaches; one line with the range that can be reached."""


class Reached(NamedTuple):
  """A file that was made on the way to a target."""
  codec: object
  quality: float | None   # None of a single-rate codec
  blob: bytes
  psnr: float | None      # dB of what it decodes to; None where only the size was asked for
  is_last: bool = False   # the target is out of range, on the side where every file meets it


def encode_to_bytes(codecs: Sequence, image: np.ndarray, target: int, **options) -> Reached:
  """The largest file of at most `target` bytes for a picture (H, W, 3) uint8.

  Size rises with quality in all but the last bits, so it may miss a file that is larger by a few bytes; the one it
  returns is never above the target. A variable-rate codec of r rates is run about log2(256 r) times.

  Args:
    codecs: one or more; the file may come from any.
    options: for `encode`, such as icc_profile.

  TargetError when every file is larger.
  """
  encode = lambda codec, quality: Reached(codec, quality, codec.encode(image, quality, **options), None)
  tried = _try(codecs, encode, lambda reached: len(reached.blob) > target)
  fitting = [each for each in tried if len(each.blob) <= target]
  if not fitting:
    tried += [encode(codec, _range(codec)[1]) for codec in codecs if _range(codec)[0] is not None]
    sizes = [len(each.blob) for each in tried]
    raise TargetError(f"{target} bytes are wanted; {_names(codecs)} makes {min(sizes)} to {max(sizes)} of this picture")
  is_last = all(len(each.blob) < target for each in tried)
  return max(fitting, key=lambda each: len(each.blob))._replace(is_last=is_last)


def encode_to_psnr(codecs: Sequence, image: np.ndarray, target: float, **options) -> Reached:
  """The smallest file that decodes to at least `target` dB of PSNR on 8-bit RGB. As `encode_to_bytes` otherwise.

  TargetError when every file is below.
  """
  def encode(codec, quality):
    blob, decoded = codec.encode_with_reconstruction(image, quality, **options)
    return Reached(codec, quality, blob, _psnr(image, decoded))

  tried = _try(codecs, encode, lambda reached: reached.psnr >= target)
  fitting = [each for each in tried if each.psnr >= target]
  if not fitting:
    tried += [encode(codec, _range(codec)[0]) for codec in codecs if _range(codec)[0] is not None]
    psnrs = [each.psnr for each in tried]
    raise TargetError(f"{target:g} dB are wanted; {_names(codecs)} reaches {min(psnrs):.2f} to {max(psnrs):.2f} "
                      "with this picture")
  is_last = all(each.psnr > target for each in tried)
  return min(fitting, key=lambda each: len(each.blob))._replace(is_last=is_last)


def _try(codecs: Sequence, encode: Callable, is_beyond: Callable[[Reached], bool]) -> list[Reached]:
  """Files of all codecs, among them the last before `is_beyond` becomes true along the qualities, and the first behind.

  When it is true, or false, everywhere, the lowest quality, or the highest, is among them.
  """
  tried = []
  for codec in codecs:
    lowest, highest = _range(codec)
    if lowest is None:
      tried.append(encode(codec, None))
      continue
    before, behind = round(lowest * QUALITY_STEPS) - 1, round(highest * QUALITY_STEPS) + 1
    while behind - before > 1:
      middle = (before + behind) // 2
      tried.append(encode(codec, middle / QUALITY_STEPS))
      if is_beyond(tried[-1]):
        behind = middle
      else:
        before = middle
  return tried


def _range(codec) -> tuple[float | None, float | None]:
  return codec.qualities[0], codec.qualities[-1]


def _names(codecs: Sequence) -> str:
  return ", ".join(codec.name for codec in codecs)


def _psnr(image: np.ndarray, decoded: np.ndarray) -> float:
  from mlic_jax.metrics import psnr  # which imports jax, as the codec has by then
  return psnr(image, decoded)
