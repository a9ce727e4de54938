"""A file of a wanted size or PSNR: which quality, or which of several checkpoints, gives it.

A variable-rate codec is searched over its learned rates, and between two of them in the steps that a file holds, by
bisection; a single-rate codec has one file to offer. A codec here is `mlic_jax.Codec`, or anything with its `name`,
`qualities`, `options`, `with_options`, `encode` and `encode_with_reconstruction`.

A codec that optimizes latents is searched without that (and with all its other options), which takes far less time; the
aim is then moved by how far the file with optimized latents misses the target.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.coding.bitstream import QUALITY_STEPS

REFINED_TRIES = 4                     # files with optimized latents on the way to a target
CLOSE_BYTES, CLOSE_DB = 0.015, 0.05   # log(bytes) and dB: such a file that fits and is so close is good enough


class TargetError(ValueError):
  """A size or PSNR that no quality reaches; one line with the range that can be reached."""


class Reached(NamedTuple):
  """A file that was made on the way to a target."""
  codec: Any
  quality: float | None   # None of a single-rate codec
  blob: bytes
  psnr: float | None      # dB of what it decodes to; None where only the size was asked for
  is_last: bool = False   # the target is out of range, on the side where every file meets it


def encode_to_bytes(codecs: Sequence, image: np.ndarray, target: int, icc_profile: bytes | None = None) -> Reached:
  """The largest file of at most `target` bytes for an image (H, W, 3) uint8.

  Size rises with quality in all but the last bits, so it may miss a file that is larger by a few bytes; the one it
  returns is never above the target. A variable-rate codec of r rates is run 1 to r + 8 times. Codecs that optimize
  latents do so at most REFINED_TRIES times; when all of these files are too large, the latents of the result are those
  of the analysis transform.

  Args:
    codecs: one or more; the file may come from any. Their options decide how it is coded.
    image: what is coded.
    target: bytes of the file, with the profile.
    icc_profile: as in `Codec.encode`.

  TargetError when the files of all rates are larger.
  """
  encode = lambda codec, quality: Reached(codec, quality, codec.encode(image, quality, icc_profile), None)
  value = lambda reached: math.log(len(reached.blob))
  tried, reached = _to_target(codecs, encode, _Target(math.log(target), value, at_most=True, close=CLOSE_BYTES))
  if reached is None:
    sizes = [len(each.blob) for each in tried]
    raise TargetError(f"{target} bytes are wanted; {_names(codecs)} makes {min(sizes)} to {max(sizes)} of this image")
  return reached


def encode_to_psnr(codecs: Sequence, image: np.ndarray, target: float, icc_profile: bytes | None = None) -> Reached:
  """The smallest file that decodes to at least `target` dB of PSNR on 8-bit RGB. As `encode_to_bytes` otherwise.

  PSNR need not rise with quality, as on flat images; a target that any of the learned rates reaches is found.
  TargetError when the files of all rates are below.
  """
  def encode(codec, quality):
    blob, decoded = codec.encode_with_reconstruction(image, quality, icc_profile)
    return Reached(codec, quality, blob, _psnr(image, decoded))

  def psnr(reached: Reached) -> float:
    assert reached.psnr is not None  # as of all that `encode` returns
    return reached.psnr

  tried, reached = _to_target(codecs, encode, _Target(target, psnr, at_most=False, close=CLOSE_DB))
  if reached is None:
    psnrs = [psnr(each) for each in tried]
    most = math.floor(100 * max(psnrs)) / 100            # rounded down, so that the range does not contain the target
    raise TargetError(f"{target:g} dB are wanted; {_names(codecs)} reaches {min(min(psnrs), most):.2f} to {most:.2f} "
                      "with this image")
  return reached


class _Target(NamedTuple):
  """A figure of files that mostly rises with quality, and what it has to be."""
  aim: float
  value: Callable[[Reached], float]
  at_most: bool            # the largest file whose value is at most `aim`; otherwise the smallest of at least `aim`
  close: float             # a value that is off by no more is good enough

  def missed_by(self, reached: Reached) -> float:
    """Above 0 for a file that does not fit."""
    return (self.value(reached) - self.aim) * (1 if self.at_most else -1)

  def best(self, files: Sequence[Reached]) -> Reached | None:
    """The best of those that fit."""
    fitting = [each for each in files if self.missed_by(each) <= 0]
    return (max if self.at_most else min)(fitting, key=lambda each: len(each.blob), default=None)

  def nearest(self, files: Sequence[Reached]) -> Reached:
    """The best, or what comes nearest to fitting."""
    return self.best(files) or min(files, key=self.missed_by)


def _to_target(codecs: Sequence, encode: Callable, target: _Target) -> tuple[list[Reached], Reached | None]:
  """The files that were made without latent optimization, and the best file: None when none fits."""
  refines = lambda codec: codec.options.refine is not None
  refined = {codec.with_options(refine=None) if refines(codec) else codec: codec for codec in codecs}
  encode_plain = functools.cache(encode)
  tried = _try(list(refined), encode_plain, target)
  reached = _refined(tried, refined, encode, encode_plain, target) if any(map(refines, codecs)) else None
  reached = reached or target.best(tried)
  is_last = all(target.missed_by(each) < 0 for each in tried)
  return tried, reached and reached._replace(is_last=is_last)


def _refined(tried: Sequence[Reached], refined: dict, encode: Callable, encode_plain: Callable,
             target: _Target) -> Reached | None:
  """The best of a few files with optimized latents. Each has the quality whose file without optimization meets an aim,
  which moves by how far the file before it missed the target. `refined` maps codecs without optimization to those with
  it."""
  files, aimed = list[Reached](), target
  for _ in range(REFINED_TRIES):
    start = aimed.nearest(tried)
    codec = refined[start.codec]
    if any((codec, start.quality) == (each.codec, each.quality) for each in files):
      break
    files.append(encode(codec, start.quality))
    missed_by = target.missed_by(files[-1])
    if -target.close <= missed_by <= 0:
      break
    step = target.aim - target.value(files[-1])
    if missed_by > 0:                                    # and a little more, as the next one has to fit
      step += (-0.5 if target.at_most else 0.5) * target.close
    aimed = aimed._replace(aim=aimed.aim + step)
    tried = _try(list(refined), encode_plain, aimed)
  return target.best(files)


def _try(codecs: Sequence, encode: Callable, target: _Target) -> list[Reached]:
  """Files of all codecs; for each codec the last one along the qualities that fits is among them.

  The rates of a variable-rate codec are tried in turn, from the lowest or the highest, until one fits; then the range
  between that one and the one before it is bisected. When none fits, all rates are among the files.
  """
  tried = []
  for codec in codecs:
    rates = list(codec.qualities)[::-1 if target.at_most else 1]
    unfit = None
    for quality in rates:
      tried.append(encode(codec, quality))
      if target.missed_by(tried[-1]) <= 0:
        break
      unfit = quality
    if unfit is None or unfit == rates[-1]:              # the first fits, or none: there is nothing between
      continue
    bad, good = (round(each * QUALITY_STEPS) for each in (unfit, tried[-1].quality))
    while abs(good - bad) > 1:
      middle = (bad + good) // 2
      tried.append(encode(codec, middle / QUALITY_STEPS))
      if target.missed_by(tried[-1]) <= 0:
        good = middle
      else:
        bad = middle
  return tried


def _names(codecs: Sequence) -> str:
  return ", ".join(codec.name for codec in codecs)


def _psnr(image: np.ndarray, decoded: np.ndarray) -> float:
  from mlic_jax.metrics import psnr  # which imports jax, as the codec has by then
  return psnr(image, decoded)
