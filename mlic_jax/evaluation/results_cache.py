"""What was measured so far: a file with one JSON line per image and codec, so that a long run can be continued.

A line is found again by the codec and by the pixels of the image, not by names or settings: what was measured stays
measured when images, qualities or codecs are added.

    {"codec": ..., "pixels": digest, "results": [[quality, {fields of ImageResult}], ...]}
    {"codec": ..., "pixels": digest, "quality": ..., "arrivals": [{fields of Arrived}, ...]}
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
from mlic_jax.evaluation.image_metrics import Arrived, ImageResult


def digest(image: np.ndarray) -> str:
  """Tells (H, W, 3) uint8 images apart."""
  return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


class Journal:
  """The file at `path`, or memory alone when that is None. Without `resume` it starts empty: what is in the file stays
  there until the first new line takes its place."""

  def __init__(self, path: Path | None = None, resume: bool = False):
    self._path, self._replaces = path, not resume
    self._results: dict[tuple[str, str], dict[float | None, ImageResult]] = {}
    self._arrivals: dict[tuple[str, str, float | None], list[Arrived]] = {}
    self._first_runs: dict[str, dict[str, float | None]] = {}
    if path is not None and resume and path.exists():
      self._read(path)

  def results(self, codec: str, pixels: str) -> dict[float | None, ImageResult]:
    """What is known of an image through a codec, by quality."""
    return self._results.get((codec, pixels), {})

  def arrivals(self, codec: str, pixels: str, quality: float | None) -> list[Arrived] | None:
    """What is known of an image while its file arrives: after 0, 1, ..., all slices."""
    return self._arrivals.get((codec, pixels, quality))

  def first_run(self, codec: str) -> dict[str, float | None] | None:
    """How long the first run of a codec took, which compiled."""
    return self._first_runs.get(codec)

  def add(self, codec: str, pixels: str, results: Mapping[float | None, ImageResult]) -> None:
    """Remembers results by quality."""
    self._write({"codec": codec, "pixels": pixels,
                 "results": [[quality, dataclasses.asdict(result)] for quality, result in results.items()]})

  def add_arrivals(self, codec: str, pixels: str, quality: float | None, arrivals: Sequence[Arrived]) -> None:
    """Remembers them."""
    self._write({"codec": codec, "pixels": pixels, "quality": quality,
                 "arrivals": [dataclasses.asdict(each) for each in arrivals]})

  def add_first_run(self, codec: str, figures: dict[str, float | None]) -> None:
    """Remembers the first of the first runs of a codec; others are of other sizes."""
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
    # One write of a whole line: a run that is killed leaves whole lines, and at worst half a last one.
    descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
      os.write(descriptor, text)
    finally:
      os.close(descriptor)

  def _read(self, path: Path) -> None:
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole) + len(newline))   # without the half line of a run that was killed
    for line in whole.splitlines():
      try:
        self._take(json.loads(line))
      except (ValueError, KeyError, TypeError):          # a damaged line, or one of another version: measured again
        continue

  def _take(self, line: dict[str, Any]) -> None:
    if "first_run" in line:
      self._first_runs.setdefault(line["codec"], line["first_run"])
      return
    if "arrivals" in line:
      self._arrivals[line["codec"], line["pixels"], line["quality"]] = [Arrived(**each) for each in line["arrivals"]]
      return
    results = {quality: ImageResult(**fields) for quality, fields in line["results"]}
    self._results.setdefault((line["codec"], line["pixels"]), {}).update(results)
