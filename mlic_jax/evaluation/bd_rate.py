"""Rate-distortion curves, and the distance between two: BD-rate and BD-PSNR."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Interpolations between the points of a curve, and the number of points that each needs. "pchip" is piecewise cubic, as
# in the common test conditions of JVET. "cubic" is one polynomial of third degree for all points, as in Bjontegaard's
# first proposal (VCEG-M33, 2001) and in the papers of the MLIC family: it fits six points well, and not a wide range.
BD_METHODS = {"pchip": 2, "akima": 3, "cubic": 4}
BD_METHOD = "pchip"
BD_MIN_OVERLAP = 0.5   # share of the narrower of two ranges of dB; with less, the result says little about the rest

METRICS = {"psnr": "psnr", "ms_ssim": "ms_ssim_db_of_mean"}   # metric of a curve -> the field of the means with its dB


class Curve(NamedTuple):
  """Quality in dB over rate, both means over the images; one point per quality, rising in rate."""
  name: str
  bpp: np.ndarray
  db: np.ndarray
  kind: str = "checkpoint"      # or "baseline", or "published"
  metric: str = "psnr"          # or "ms_ssim", in dB of the mean
  source: str | None = None     # of a published curve

  @classmethod
  def of(cls, entries: Sequence[dict[str, Any]], kind: str = "checkpoint", metric: str = "psnr",
         name: str | None = None) -> "Curve | None":
    """The curve of one codec from its entries, by the bytes of the files, or by the estimate without files.

    None when an image lacks the metric, such as MS-SSIM below 176 pixels: the rate would be of other images.
    """
    if any(image[metric] is None for entry in entries for image in entry["images"]):
      return None
    means = [entry["mean"] for entry in entries]
    rate = "bpp_estimated" if means[0]["bpp"] is None else "bpp"
    bpp, db = np.array(sorted((each[rate], each[METRICS[metric]]) for each in means)).T
    return cls(name or entries[0]["name"], bpp, db, kind, metric)

  def db_at(self, bpp: float) -> float | None:
    """The dB interpolated over log(bpp); None outside the curve, and for a curve of one point."""
    if len(self.bpp) < 2 or not np.all(np.diff(self.bpp) > 0) or not self.bpp[0] <= bpp <= self.bpp[-1]:
      return None
    from scipy.interpolate import PchipInterpolator  # slow to import, and `mlic-jax --help` imports this module
    return float(PchipInterpolator(np.log(self.bpp), self.db)(np.log(bpp)))


def bd_rate(curve: Curve, anchor: Curve, method: str = BD_METHOD) -> dict[str, Any]:
  """The distance of `curve` from `anchor`, along the rate and along the quality.

  Returns {"curve", "kind", "checkpoint", "anchor", "metric", "percent", "method", "overlap_db", "reason", "bd_db",
  "overlap_bpp"}. `percent`: percent more (positive) or fewer bits at the same quality, the mean over `overlap_db`.
  `bd_db`: dB more at the same rate, the mean over log(bpp) in `overlap_bpp`: BD-PSNR, or that of MS-SSIM. Both are
  None, with a `reason`, when a curve has too few points or does not rise, or when the ranges of dB overlap too little.
  `bd_db` alone is None when the rates do not overlap.
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
  """The package, which is slow to import, and imports matplotlib."""
  from mlic_jax.evaluation import matplotlib_settings  # noqa: F401
  import bjontegaard  # isort: skip
  return bjontegaard


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
  return max(ours.min(), theirs.min()), min(ours.max(), theirs.max())


def _reason(curve: Curve, anchor: Curve, method: str) -> str | None:
  """The reason why there is no BD-rate, or None."""
  low, high = _overlap(curve.db, anchor.db)
  fewest, metric = min(len(curve.db), len(anchor.db)), "PSNR" if curve.metric == "psnr" else "MS-SSIM"
  if fewest < 2:
    return "one point is no curve"
  if fewest < BD_METHODS[method]:
    return f"{fewest} points; {method} wants {BD_METHODS[method]}"
  if not all(np.all(np.diff(values) > 0) for values in (curve.bpp, curve.db, anchor.bpp, anchor.db)):
    return f"{metric} does not rise with the rate"
  if high - low < BD_MIN_OVERLAP * min(np.ptp(curve.db), np.ptp(anchor.db)):
    return (f"too little overlap: {curve.db.min():.1f} to {curve.db.max():.1f} dB against "
            f"{anchor.db.min():.1f} to {anchor.db.max():.1f} dB")
  return None


def _within(curve: Curve, other: Curve) -> Curve:
  """`curve` without points far outside the dB of `other`, which would bend a single cubic; one point remains on either
  side.

  Unchanged where fewer than four points would remain.
  """
  first = max(np.searchsorted(curve.db, other.db.min(), "right") - 1, 0)
  last = np.searchsorted(curve.db, other.db.max(), "left") + 1
  if last - first < BD_METHODS["cubic"]:
    return curve
  return curve._replace(bpp=curve.bpp[first:last], db=curve.db[first:last])
