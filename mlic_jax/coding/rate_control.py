"""A file of a wanted size or PSNR: which quality, or which of several checkpoints, gives it.

A variable-rate codec is searched over its learned rates, and between two of them in the steps that a file holds, by
halving the range; a single-rate codec has one file to offer. A codec here is `mlic_jax.Codec`, or anything with its
`name`, `qualities`, `encode` and `encode_with_reconstruction`.
"""
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mlic_jax.coding.bitstream import QUALITY_STEPS

REFINED_TRIES = 4   # of aiming at a target with refined files
CLOSE = 0.985       # of the target, with which a refined file is content


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
  returns is never above the target. A variable-rate codec of r rates is run 1 to r + 8 times.

  Args:
    codecs: one or more; the file may come from any.
    options: for `encode`, such as icc_profile. With `refine` the file is refined, and aims at the target after it: the
      search is among plain files, and runs again towards what a refined one left of the target or took too much.

  TargetError when the files of all rates are larger.
  """
  if options.get("refine") is not None:
    return _refined_to_bytes(codecs, image, target, options)
  encode = lambda codec, quality: Reached(codec, quality, codec.encode(image, quality, **options), None)
  tried = _try(codecs, encode, lambda reached: len(reached.blob) <= target, downwards=True)
  fitting = [each for each in tried if len(each.blob) <= target]
  if not fitting:
    sizes = [len(each.blob) for each in tried]
    raise TargetError(f"{target} bytes are wanted; {_names(codecs)} makes {min(sizes)} to {max(sizes)} of this picture")
  is_last = all(len(each.blob) < target for each in tried)
  return max(fitting, key=lambda each: len(each.blob))._replace(is_last=is_last)


def _refined_to_bytes(codecs: Sequence, image: np.ndarray, target: int, options: dict) -> Reached:
  """The largest refined file of at most `target` bytes that was made in REFINED_TRIES, and otherwise the plain one."""
  of_search = {name: value for name, value in options.items() if name not in ("refine", "lmbda")}
  aim, best = target, None
  for _ in range(REFINED_TRIES):
    plain = encode_to_bytes(codecs, image, max(1, aim), **of_search)
    blob = plain.codec.encode(image, plain.quality, **options)
    if len(blob) <= target and (best is None or len(blob) > len(best.blob)):
      best = plain._replace(blob=blob)
    if plain.is_last or CLOSE * target <= len(blob) <= target:
      break
    aim = math.floor(aim * target / len(blob) * (1.0 if len(blob) <= target else CLOSE))
  return best or encode_to_bytes(codecs, image, target, **of_search)


def encode_to_psnr(codecs: Sequence, image: np.ndarray, target: float, **options) -> Reached:
  """The smallest file that decodes to at least `target` dB of PSNR on 8-bit RGB. As `encode_to_bytes` otherwise.

  PSNR need not rise with quality, as on flat pictures; what any of the learned rates reaches is found.
  TargetError when the files of all rates are below.
  """
  def encode(codec, quality):
    blob, decoded = codec.encode_with_reconstruction(image, quality, **options)
    return Reached(codec, quality, blob, _psnr(image, decoded))

  tried = _try(codecs, encode, lambda reached: reached.psnr >= target, downwards=False)
  fitting = [each for each in tried if each.psnr >= target]
  if not fitting:
    psnrs = [each.psnr for each in tried]
    most = math.floor(100 * max(psnrs)) / 100            # rounded down, so that the range does not contain the target
    raise TargetError(f"{target:g} dB are wanted; {_names(codecs)} reaches {min(min(psnrs), most):.2f} to {most:.2f} "
                      "with this picture")
  is_last = all(each.psnr > target for each in tried)
  return min(fitting, key=lambda each: len(each.blob))._replace(is_last=is_last)


def _try(codecs: Sequence, encode: Callable, fits: Callable[[Reached], bool], downwards: bool) -> list[Reached]:
  """Files of all codecs, among them, of each, the last that fits along the qualities.

  Of a variable-rate codec its rates are tried in turn, from the lowest or `downwards`, until one fits; then the range
  between that one and the one before it is halved. When none fits, all rates are among the files.
  """
  tried = []
  for codec in codecs:
    rates = list(codec.qualities)[::-1 if downwards else 1]
    unfit = None
    for quality in rates:
      tried.append(encode(codec, quality))
      if fits(tried[-1]):
        break
      unfit = quality
    if unfit is None or unfit == rates[-1]:              # the first fits, or none: there is nothing between
      continue
    bad, good = (round(each * QUALITY_STEPS) for each in (unfit, tried[-1].quality))
    while abs(good - bad) > 1:
      middle = (bad + good) // 2
      tried.append(encode(codec, middle / QUALITY_STEPS))
      if fits(tried[-1]):
        good = middle
      else:
        bad = middle
  return tried


def _names(codecs: Sequence) -> str:
  return ", ".join(codec.name for codec in codecs)


def _psnr(image: np.ndarray, decoded: np.ndarray) -> float:
  from mlic_jax.metrics import psnr  # which imports jax, as the codec has by then
  return psnr(image, decoded)
