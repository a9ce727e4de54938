"""Images of the report: originals, and for each rate reconstruction, error map, bit map and the best baseline.

The baseline is the conventional codec with the highest PSNR at the same number of bytes. The images are files in
FOLDER/IMAGE/, with a record of their figures (.json) that is written last; images with a record are not written again.
They are WebP at quality 92, because a page with lossless images would have tens of megabytes. Baseline files that every
browser shows are used unchanged. Images larger than SIDE pixels are cropped to their middle.
"""
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic_jax.atomic_io import write_whole
from mlic_jax.data.pillow_decode import open_image
from mlic_jax.evaluation.baselines import Baseline
from mlic_jax.evaluation.bit_maps import BitsMap
from mlic_jax.evaluation.image_metrics import Coded, ImageResult, code_baseline, compare
from mlic_jax.evaluation.matplotlib_settings import matplotlib

SIDE = 768             # maximum side of an image in the report in pixels, a multiple of CROP_STEP
CROP_STEP = 16         # crops begin at multiples of this, so that they contain whole positions of y
ERROR_MAX = 32         # 8-bit levels that have the brightest color in an error map
BROWSERS_SHOW = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}
COLORS = "cividis"     # Nunez, Anderton and Renslow, 2018: similar for every kind of color vision


class ReportImages:
  """Writes the images of the report, and reuses those of an earlier evaluation.

  Args:
    folder: the folder of the files.
    digests: digests of the images to show, by name (results_cache.py).
    baselines: the baselines to compare with at equal bytes.
    sweep: results of these baselines, {(name of the baseline, name of the image): {quality: ImageResult}}.
    resume: whether files of an earlier evaluation are reused.
  """

  def __init__(self, folder: Path, digests: Mapping[str, str], baselines: Sequence[Baseline],
               sweep: Mapping[tuple[str, str], Mapping[Any, ImageResult]], resume: bool = False):
    self._folder, self._digests, self._baselines, self._sweep = folder, digests, baselines, sweep
    self._resume = resume
    self._drawn: set[tuple[str, str, float | None]] = set()

  def is_missing(self, codec_key: str, name: str, quality: float | None) -> bool:
    """Whether the report shows an image and it has no files at this quality."""
    return name in self._digests and self._read(codec_key, name, quality) is None

  def draw(self, codec_key: str, name: str, image: np.ndarray, quality: float | None, coded: Coded,
           bits_of: Callable[[np.ndarray, float | None], BitsMap], scale_key: str | None = None) -> None:
    """Writes the files of one image at one quality, if they are missing.

    scale_key: key of a codec with an existing bit map, whose color scale is used, so that the two maps are comparable.
    """
    if not self.is_missing(codec_key, name, quality):
      return
    folder, stem = self._folder / slug(name), _stem(codec_key, quality)
    folder.mkdir(parents=True, exist_ok=True)
    window, bits = _middle(image), bits_of(image, quality)
    other = self._read(scale_key, name, quality) if scale_key else None
    tiles, scales = _bits_tiles(bits, window, other["bits_scale_bpp"] if other else None)
    record = {
        "key": self._key(codec_key, name), "height": window[0].stop - window[0].start,
        "width": window[1].stop - window[1].start, "cropped": image.shape[:2] != image[window].shape[:2],
        "original": self._write(folder / "original.webp", _webp(image[window])),
        "reconstruction": self._write(folder / f"{stem}.webp", _webp(coded.reconstruction[window])),
        "error": self._write(folder / f"{stem}-error.webp", _error_map(image[window], coded.reconstruction[window])),
        "bits": self._write(folder / f"{stem}-bits.png", _png(tiles)),
        "bits_stride": bits.stride,
        "bits_of_slices": [float(each) for each in bits.slices.sum((0, 1))], "bits_of_z": float(bits.z.sum()),
        "bits_scale_bpp": scales, "bits_places": [tiles.shape[0] // (1 + bits.slices.shape[-1]), tiles.shape[1]],
        "baseline": self._baseline(folder, stem, name, image, window, coded.size)}
    self._write(folder / f"{stem}.json", json.dumps(record).encode())
    self._drawn.add((codec_key, name, quality))

  def records(self, entries: Sequence[dict[str, Any]], codec_key: str) -> list[dict[str, Any]]:
    """Returns a record for each image and quality of a checkpoint, from its entries in results.json.

    Paths are relative to the folder."""
    records = []
    for entry in entries:
      for result in entry["images"]:
        if result["name"] in self._digests:
          record = self._read(codec_key, result["name"], entry["quality"])
          assert record is not None  # `draw` wrote it
          figures = {field: result[field] for field in ("bytes", "bpp", "bpp_estimated", "psnr", "ms_ssim")}
          records.append({"image": result["name"], "checkpoint": entry["name"], "quality": entry["quality"],
                          "plain": (entry.get("refine") or {}).get("plain"), **figures,
                          **{field: value for field, value in record.items() if field != "key"}})
    return records

  def _key(self, codec_key: str, name: str) -> list[str]:
    return [codec_key, self._digests[name], *(baseline.name for baseline in self._baselines)]

  def _read(self, codec_key: str, name: str, quality: float | None) -> dict[str, Any] | None:
    if not self._resume and (codec_key, name, quality) not in self._drawn:
      return None
    path = self._folder / slug(name) / f"{_stem(codec_key, quality)}.json"
    try:
      record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):                        # missing or damaged: it is written again
      return None
    return record if _is_record(record) and record["key"] == self._key(codec_key, name) else None

  def _write(self, path: Path, content: bytes) -> str:
    write_whole(path, content)
    return path.relative_to(self._folder).as_posix()

  def _baseline(self, folder, stem, name, image, window, size) -> dict[str, Any] | None:
    """Returns the baseline with the highest PSNR at `size` bytes, at its highest quality of at most `size` bytes."""
    baselines = [each for each in self._baselines if (each.name, name) in self._sweep]   # which can encode the image
    sweeps = [self._sweep[baseline.name, name] for baseline in baselines]
    reached = [_psnr_at(sweep, size) for sweep in sweeps]
    if not reached:
      return None
    best = max(range(len(reached)), key=lambda i: (reached[i] is not None, reached[i] or -_smallest(sweeps[i])))
    baseline = baselines[best]
    quality, coded = _largest_within(baseline, sweeps[best], name, image, size)
    result = compare(name, image, coded)
    image_format = open_image(io.BytesIO(coded.file), formats=None).format
    if image_format in BROWSERS_SHOW and image[window].shape == image.shape:
      path = self._write(folder / f"{stem}-baseline.{BROWSERS_SHOW[image_format]}", coded.file)
    else:
      path = self._write(folder / f"{stem}-baseline.webp", _webp(coded.reconstruction[window]))
    return {"name": baseline.name, "quality": quality, "bytes": result.bytes, "bpp": result.bpp, "psnr": result.psnr,
            "ms_ssim": result.ms_ssim, "picture": path}


def _is_record(record: Any) -> bool:
  """Whether a record is valid: sizes are numbers, and paths are inside the folder."""
  try:
    paths = [record[field] for field in ("original", "reconstruction", "error", "bits")]
    paths += [record["baseline"]["picture"]] if record["baseline"] else []
    numbers = [record["width"], record["height"], record["bits_of_z"], *record["bits_of_slices"]]
  except (KeyError, TypeError):
    return False
  return "key" in record and all(isinstance(each, (int, float)) for each in numbers) and all(
      isinstance(path, str) and re.fullmatch(r"[a-z0-9+-][a-z0-9.+-]*/[a-z0-9+-][a-z0-9.+-]*", path) for path in paths)


def slug(name: str) -> str:
  """Returns a unique file name for a name that is safe on every system, also on those that ignore case."""
  safe = readable(name)
  return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def readable(name: str) -> str:
  """Returns the characters of a name that are safe in a file name, in lower case. The result is not unique."""
  return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-.")[:80] or "-"


def _stem(codec_key: str, quality: float | None) -> str:
  return slug(codec_key if quality is None else f"{codec_key} q{quality!r}")


def _middle(image: np.ndarray) -> tuple[slice, slice]:
  """Returns the rows and columns to show: all, or SIDE pixels in the middle that begin at a multiple of CROP_STEP."""
  def middle(side: int) -> slice:
    start = max(side - SIDE, 0) // 2 // CROP_STEP * CROP_STEP
    return slice(start, min(start + SIDE, side))
  height, width = image.shape[:2]
  return middle(height), middle(width)


def _webp(image: np.ndarray, quality: int = 92) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
  return buffer.getvalue()


def _png(indices: np.ndarray) -> bytes:
  """Encodes (H, W) uint8 as PNG with the colors of COLORS."""
  buffer, image = io.BytesIO(), Image.fromarray(indices, "P")
  image.putpalette(_palette().ravel().tolist())
  image.save(buffer, "PNG", optimize=True)
  return buffer.getvalue()


def _palette() -> np.ndarray:
  return matplotlib.colormaps[COLORS](np.arange(256), bytes=True)[:, :3]


def _error_map(image: np.ndarray, reconstruction: np.ndarray) -> bytes:
  """Draws the mean absolute error over channels and 2x2 pixels, 0 to ERROR_MAX, as WebP."""
  error = np.abs(image.astype(np.float32) - reconstruction).mean(-1)
  error = np.pad(error, [(0, side % 2) for side in error.shape], mode="edge")
  error = error.reshape(error.shape[0] // 2, 2, error.shape[1] // 2, 2).mean((1, 3))
  return _webp(_palette()[np.uint8(np.clip(error * 255 / ERROR_MAX, 0, 255))], quality=80)


def _bits_tiles(bits: BitsMap, window: tuple[slice, slice],
                scales: dict[str, float] | None = None) -> tuple[np.ndarray, dict[str, float]]:
  """Stacks maps of bits per pixel vertically: the sum, then each slice; returns them and the color scales.

  A scale is the bits per pixel of the brightest color. All slices share one. scales: those of another map to use.
  """
  rows, columns = (slice(each.start // bits.stride, -(-each.stop // bits.stride)) for each in window)
  total = bits.slices.sum(-1) + np.kron(bits.z, np.ones((4, 4))) / 16
  maps = np.concatenate([total[None], np.moveaxis(bits.slices, -1, 0)])[:, rows, columns] / bits.stride**2
  scales = scales or {"all": _brightest(maps[0]), "slice": _brightest(maps[1:])}
  shades = maps / np.array([scales["all"], *[scales["slice"]] * (len(maps) - 1)])[:, None, None]
  return np.uint8(np.clip(255 * shades, 0, 255)).reshape(-1, maps.shape[-1]), scales


def _brightest(values: np.ndarray) -> float:
  """Returns a high quantile; with the maximum, one outlier would darken all other positions."""
  return float(max(np.quantile(values, 0.995), 1e-6))


def _psnr_at(sweep: Mapping[int, ImageResult], size: int) -> float | None:
  """Interpolates PSNR over log(bytes); None outside the sweep."""
  points = sorted((np.log(result.file_bytes), result.psnr) for result in sweep.values())
  sizes, values = zip(*points)
  return float(np.interp(np.log(size), sizes, values)) if sizes[0] <= np.log(size) <= sizes[-1] else None


def _smallest(sweep: Mapping[int, ImageResult]) -> float:
  return min(result.file_bytes for result in sweep.values())


def _largest_within(baseline: Baseline, sweep: Mapping[int, ImageResult], name: str, image: np.ndarray,
                    size: int) -> tuple[int, Coded]:
  """Encodes at the highest quality whose file has at most `size` bytes, or else the lowest; returns it and the output.
  """
  low, high = baseline.all_qualities[0], baseline.all_qualities[-1]
  low = max([low, *(quality for quality, result in sweep.items() if result.file_bytes <= size)])
  high = min([high, *(quality - 1 for quality, result in sweep.items() if result.file_bytes > size)])
  while low < high:                                      # the answer is in low..high, both included
    middle = (low + high + 1) // 2
    if len(baseline.encode(image, middle)) <= size:
      low = middle
    else:
      high = middle - 1
  return low, code_baseline(baseline, name, image, low)
