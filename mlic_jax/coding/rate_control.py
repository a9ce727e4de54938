"""Rate control: searches qualities and checkpoints for a file of a target size or PSNR.

The search tries the rate points of a variable-rate codec and bisects between two of them, in steps of 1/QUALITY_STEPS.
A single-rate codec has one file. A codec is `mlic_jax.Codec`, or any object with its `name`, `qualities`, `options`,
`with_options`, `encode` and `encode_with_reconstruction`.

With latent optimization the search runs without it (and with all other options), which takes far less time. The target
of the search then moves by the error of the file with optimized latents.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlic_jax.coding.bitstream import QUALITY_STEPS

REFINED_TRIES = 4                     # maximum number of files with optimized latents per search
CLOSE_BYTES, CLOSE_DB = 0.015, 0.05   # tolerances in log(bytes) and dB that end the search with optimized latents


class TargetError(ValueError):
  """No quality reaches the target size or PSNR; the message is one line with the range that can be reached."""


class Reached(NamedTuple):
  """A file of the search, and how it was encoded."""
  codec: Any
  quality: float | None   # None for a single-rate codec
  blob: bytes
  psnr: float | None      # PSNR in dB of the decoded image; None in a search for a size
  is_last: bool = False   # whether the target is out of range, on the side where every file meets it


def encode_to_bytes(codecs: Sequence, image: np.ndarray, target: int, icc_profile: bytes | None = None) -> Reached:
  """Encodes an image (H, W, 3) uint8 to the largest file of at most `target` bytes.

  The result is never larger than the target. Size may fall by a few bytes when quality rises, so the search may miss a
  slightly larger file. A variable-rate codec with r rate points encodes 1 to r + 8 times. With latent optimization,
  latents are optimized at most REFINED_TRIES times; if all of these files are too large, the result has the latents of
  the analysis transform.

  Args:
    codecs: one or more codecs, with their options; the file may come from any of them.
    image: the image to encode.
    target: maximum size of the file in bytes, with the profile.
    icc_profile: as in `Codec.encode`.

  TargetError if the files of all rate points are larger.
  """
  encode = lambda codec, quality: Reached(codec, quality, codec.encode(image, quality, icc_profile), None)
  value = lambda reached: math.log(len(reached.blob))
  tried, reached = _search(codecs, encode, _Target(math.log(target), value, at_most=True, close=CLOSE_BYTES))
  if reached is None:
    sizes = [len(each.blob) for each in tried]
    raise TargetError(f"wanted at most {target} bytes; {_names(codecs)} encodes this image to {min(sizes)} to "
                      f"{max(sizes)} bytes")
  return reached


def encode_to_psnr(codecs: Sequence, image: np.ndarray, target: float, icc_profile: bytes | None = None) -> Reached:
  """Encodes an image to the smallest file that decodes to at least `target` dB of PSNR on 8-bit RGB.

  Everything else is as in `encode_to_bytes`. PSNR may fall when quality rises, for example on flat images; a target
  that any rate point reaches is found. TargetError if the files of all rate points have a lower PSNR.
  """
  def encode(codec, quality):
    blob, decoded = codec.encode_with_reconstruction(image, quality, icc_profile)
    return Reached(codec, quality, blob, _psnr(image, decoded))

  def psnr(reached: Reached) -> float:
    assert reached.psnr is not None  # `encode` above sets it
    return reached.psnr

  tried, reached = _search(codecs, encode, _Target(target, psnr, at_most=False, close=CLOSE_DB))
  if reached is None:
    psnrs = [psnr(each) for each in tried]
    most = math.floor(100 * max(psnrs)) / 100            # rounded down, so that the range does not contain the target
    raise TargetError(f"wanted at least {target:g} dB; {_names(codecs)} reaches {min(min(psnrs), most):.2f} to "
                      f"{most:.2f} dB with this image")
  return reached


class _Target(NamedTuple):
  """A target for a value of files that mostly rises with quality: log(bytes) or PSNR."""
  aim: float
  value: Callable[[Reached], float]
  at_most: bool            # True: the largest file whose value is at most `aim`; False: the smallest of at least `aim`
  close: float             # tolerance of the value that ends the search with optimized latents

  def missed_by(self, reached: Reached) -> float:
    """Returns by how much a file misses the target; 0 or less for a file that meets it."""
    return (self.value(reached) - self.aim) * (1 if self.at_most else -1)

  def best(self, files: Sequence[Reached]) -> Reached | None:
    """Returns the best file that meets the target, or None."""
    fitting = [each for each in files if self.missed_by(each) <= 0]
    return (max if self.at_most else min)(fitting, key=lambda each: len(each.blob), default=None)

  def nearest(self, files: Sequence[Reached]) -> Reached:
    """Returns the best file that meets the target, or else the one that misses it by least."""
    return self.best(files) or min(files, key=self.missed_by)


def _search(codecs: Sequence, encode: Callable, target: _Target) -> tuple[list[Reached], Reached | None]:
  """Returns the files without latent optimization, and the best file, None if no file meets the target."""
  refines = lambda codec: codec.options.refine is not None
  refined = {codec.with_options(refine=None) if refines(codec) else codec: codec for codec in codecs}
  encode_plain = functools.cache(encode)
  tried = _search_qualities(list(refined), encode_plain, target)
  reached = _search_refined(tried, refined, encode, encode_plain, target) if any(map(refines, codecs)) else None
  reached = reached or target.best(tried)
  is_last = all(target.missed_by(each) < 0 for each in tried)
  return tried, reached and reached._replace(is_last=is_last)


def _search_refined(tried: Sequence[Reached], refined: dict, encode: Callable, encode_plain: Callable,
                    target: _Target) -> Reached | None:
  """Returns the best of at most REFINED_TRIES files with optimized latents; None if none meets the target.

  Each has the quality at which a file without optimization meets an aim. The aim moves by the error of the previous
  file. `refined` maps codecs without latent optimization to those with it."""
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
    if missed_by > 0:                                    # moves a little further, because the next file has to fit
      step += (-0.5 if target.at_most else 0.5) * target.close
    aimed = aimed._replace(aim=aimed.aim + step)
    tried = _search_qualities(list(refined), encode_plain, aimed)
  return target.best(files)


def _search_qualities(codecs: Sequence, encode: Callable, target: _Target) -> list[Reached]:
  """Returns the files of a search over the qualities of each codec; the best one of each codec is among them.

  The search tries the rate points from the side that misses the target until one meets it, and then bisects between
  that one and the one before. If none meets it, all rate points are among the files.
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
    if unfit is None or unfit == rates[-1]:              # the first rate point fits, or none does: nothing to bisect
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
  from mlic_jax.metrics import psnr  # imports jax, which takes time
  return psnr(image, decoded)
