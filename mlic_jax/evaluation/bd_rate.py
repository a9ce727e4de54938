"""Rate-distortion curves, and the difference between two curves: BD-rate and BD-PSNR."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# {interpolation between the points of a curve: minimum number of points}. "pchip" is piecewise cubic, as in the common
# test conditions of JVET. "cubic" is one polynomial of third degree for all points, as in Bjontegaard's first proposal
# (VCEG-M33, 2001) and in the papers of the MLIC family. It fits six points well, but not a wide range.
BD_METHODS = {"pchip": 2, "akima": 3, "cubic": 4}
BD_METHOD = "pchip"
BD_MIN_OVERLAP = 0.5   # minimum overlap, as a share of the narrower range of dB

METRICS = {"psnr": "psnr", "ms_ssim": "ms_ssim_db_of_mean"}   # metric of a curve -> the field of the means with its dB


class Curve(NamedTuple):
  """A rate-distortion curve: dB over bpp, both means over images, with one point per quality in rising order."""
  name: str
  bpp: np.ndarray
  db: np.ndarray
  kind: str = "checkpoint"      # or "baseline", or "published"
  metric: str = "psnr"          # or "ms_ssim", in dB of the mean
  source: str | None = None     # the source of a published curve

  @classmethod
  def of(cls, entries: Sequence[dict[str, Any]], kind: str = "checkpoint", metric: str = "psnr",
         name: str | None = None) -> "Curve | None":
    """Builds the curve of a codec from its entries in results.json, with rates of files, or else estimated rates.

    Returns None if an image lacks the metric, such as MS-SSIM below 176 pixels: rate and metric would be means over
    different images.
    """
    if any(image[metric] is None for entry in entries for image in entry["images"]):
      return None
    means = [entry["mean"] for entry in entries]
    rate = "bpp_estimated" if means[0]["bpp"] is None else "bpp"
    bpp, db = np.array(sorted((each[rate], each[METRICS[metric]]) for each in means)).T
    return cls(name or entries[0]["name"], bpp, db, kind, metric)

  def db_at(self, bpp: float) -> float | None:
    """Interpolates dB over log(bpp); None outside the curve, and for a curve with a single point."""
    if len(self.bpp) < 2 or not np.all(np.diff(self.bpp) > 0) or not self.bpp[0] <= bpp <= self.bpp[-1]:
      return None
    from scipy.interpolate import PchipInterpolator  # slow to import, and `mlic-jax --help` imports this module
    return float(PchipInterpolator(np.log(self.bpp), self.db)(np.log(bpp)))


def bd_rate(curve: Curve, anchor: Curve, method: str = BD_METHOD) -> dict[str, Any]:
  """Computes the mean difference between `curve` and `anchor`, in rate and in dB.

  Returns {"curve", "kind", "checkpoint", "anchor", "metric", "percent", "method", "overlap_db", "reason", "bd_db",
  "overlap_bpp"}. `percent` is the BD-rate: percent more (positive) or fewer bits at the same dB, averaged over
  `overlap_db`. `bd_db` is the BD-PSNR, or the same for MS-SSIM: dB more at the same rate, averaged over log(bpp) in
  `overlap_bpp`. Both are None, with a `reason`, if a curve has too few points or does not rise, or if the ranges of dB
  overlap too little. Only `bd_db` is None if the rates do not overlap.
  """
  low, high = _overlap(curve.db, anchor.db)
  result: dict[str, Any] = {
    "curve": curve.name, "kind": curve.kind, "checkpoint": curve.name if curve.kind == "checkpoint" else None,
    "anchor": anchor.name, "metric": curve.metric, "percent": None, "method": method, "overlap_db": None,
    "reason": _reason(curve, anchor, method), "bd_db": None, "overlap_bpp": None}
  if result["reason"]:
    return result
  if method == "cubic":
    curve, anchor = _within(curve, anchor), _within(anchor, curve)
  bjontegaard = _bjontegaard()
  points = anchor.bpp, anchor.db, curve.bpp, curve.db, method
  result |= {"percent": float(bjontegaard.bd_rate(*points, require_matching_points=False, min_overlap=0)),
             "overlap_db": [float(low), float(high)]}
  low, high = _overlap(curve.bpp, anchor.bpp)
  if low < high:
    result |= {"bd_db": float(bjontegaard.bd_psnr(*points, require_matching_points=False, min_overlap=0)),
               "overlap_bpp": [float(low), float(high)]}
  return result


def _bjontegaard():
  """Imports the package bjontegaard, which is slow and imports matplotlib."""
  from mlic_jax.evaluation import matplotlib_settings  # noqa: F401
  import bjontegaard  # isort: skip
  return bjontegaard


def _overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
  return max(a.min(), b.min()), min(a.max(), b.max())


def _reason(curve: Curve, anchor: Curve, method: str) -> str | None:
  """Returns the reason why there is no BD-rate, or None."""
  low, high = _overlap(curve.db, anchor.db)
  fewest, metric = min(len(curve.db), len(anchor.db)), "PSNR" if curve.metric == "psnr" else "MS-SSIM"
  if fewest < 2:
    return "a curve needs two points"
  if fewest < BD_METHODS[method]:
    return f"{fewest} points; {method} needs {BD_METHODS[method]}"
  if not all(np.all(np.diff(values) > 0) for values in (curve.bpp, curve.db, anchor.bpp, anchor.db)):
    return f"{metric} does not rise with the rate"
  if high - low < BD_MIN_OVERLAP * min(np.ptp(curve.db), np.ptp(anchor.db)):
    return (f"too little overlap: {curve.db.min():.1f} to {curve.db.max():.1f} dB against "
            f"{anchor.db.min():.1f} to {anchor.db.max():.1f} dB")
  return None


def _within(curve: Curve, other: Curve) -> Curve:
  """Removes points of `curve` far outside the dB range of `other`, which would bend a single cubic.

  One point beyond either end remains. The curve is unchanged if fewer than four points would remain.
  """
  first = max(np.searchsorted(curve.db, other.db.min(), "right") - 1, 0)
  last = np.searchsorted(curve.db, other.db.max(), "left") + 1
  if last - first < BD_METHODS["cubic"]:
    return curve
  return curve._replace(bpp=curve.bpp[first:last], db=curve.db[first:last])
