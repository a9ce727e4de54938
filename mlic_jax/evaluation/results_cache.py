"""A cache of measurements for --resume: a file with one JSON line for each image and codec.

A line is found by the codec and the pixels of the image, not by names or settings. Results therefore remain valid when
images, qualities or codecs are added.

    {"codec": ..., "pixels": digest, "results": [[quality, {fields of ImageResult}], ...]}
    {"codec": ..., "pixels": digest, "quality": ..., "arrivals": [{fields of ProgressiveResult}, ...]}
    {"codec": ..., "first_run": {"height", "width", "encode_s", "decode_s"}}
"""
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.evaluation.image_metrics import ImageResult, ProgressiveResult


def digest(image: np.ndarray) -> str:
  """Returns a digest of the pixels of an image (H, W, 3) uint8."""
  return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


class ResultsCache:
  """Results in the file `path`, or only in memory if it is None.

  Without `resume` the cache starts empty, and the first new line replaces an existing file."""

  def __init__(self, path: Path | None = None, resume: bool = False):
    self._path, self._replaces = path, not resume
    self._results: dict[tuple[str, str], dict[float | None, ImageResult]] = {}
    self._progressive: dict[tuple[str, str, float | None], list[ProgressiveResult]] = {}
    self._first_runs: dict[str, dict[str, float | None]] = {}
    if path is not None and resume and path.exists():
      self._read(path)

  def results(self, codec: str, pixels: str) -> dict[float | None, ImageResult]:
    """Returns the results of an image and a codec by quality."""
    return self._results.get((codec, pixels), {})

  def progressive(self, codec: str, pixels: str, quality: float | None) -> list[ProgressiveResult] | None:
    """Returns the results of an image after 0, 1, ..., all slices of its file, or None."""
    return self._progressive.get((codec, pixels, quality))

  def first_run(self, codec: str) -> dict[str, float | None] | None:
    """Returns the times of the first run of a codec, which compiled, or None."""
    return self._first_runs.get(codec)

  def add(self, codec: str, pixels: str, results: Mapping[float | None, ImageResult]) -> None:
    """Adds results by quality."""
    self._write({"codec": codec, "pixels": pixels,
                 "results": [[quality, dataclasses.asdict(result)] for quality, result in results.items()]})

  def add_progressive(self, codec: str, pixels: str, quality: float | None,
                      steps: Sequence[ProgressiveResult]) -> None:
    """Adds the results after 0, 1, ..., all slices."""
    self._write({"codec": codec, "pixels": pixels, "quality": quality,
                 "arrivals": [dataclasses.asdict(each) for each in steps]})

  def add_first_run(self, codec: str, figures: dict[str, float | None]) -> None:
    """Adds the times of the first run of a codec. Later calls, for other image sizes, have no effect."""
    if codec not in self._first_runs:
      self._write({"codec": codec, "first_run": figures})

  def _write(self, line: dict[str, Any]) -> None:
    self._take(line)
    if self._path is None:
      return
    text = (json.dumps(line, allow_nan=False) + "\n").encode()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    if self._replaces:
      write_whole(self._path, text)
      self._replaces = False
      return
    # One write per line: after a killed run, only the last line may be incomplete.
    descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
      os.write(descriptor, text)
    finally:
      os.close(descriptor)

  def _read(self, path: Path) -> None:
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole) + len(newline))   # removes an incomplete last line
    for line in whole.splitlines():
      try:
        self._take(json.loads(line))
      except (ValueError, KeyError, TypeError):          # damaged or of another version: measured again
        continue

  def _take(self, line: dict[str, Any]) -> None:
    if "first_run" in line:
      self._first_runs.setdefault(line["codec"], line["first_run"])
      return
    if "arrivals" in line:
      steps = [ProgressiveResult(**each) for each in line["arrivals"]]
      self._progressive[line["codec"], line["pixels"], line["quality"]] = steps
      return
    results = {quality: ImageResult(**fields) for quality, fields in line["results"]}
    self._results.setdefault((line["codec"], line["pixels"]), {}).update(results)
