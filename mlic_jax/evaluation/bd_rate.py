"""Rate-distortion curves, and how far one lies from another: BD-rate and BD-PSNR."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# How the points of a curve are joined before the area between two is taken, and how many points that needs.
# "pchip" is piecewise cubic, as in the common test conditions of JVET. "cubic" is one polynomial of third degree for
# all points, of Bjontegaard's first proposal (VCEG-M33, 2001), and what the papers of the MLIC family use: it fits a
# sweep of six points well, and misses points of a wide one.
BD_METHODS = {"pchip": 2, "akima": 3, "cubic": 4}
BD_METHOD = "pchip"
BD_MIN_OVERLAP = 0.5   # of the narrower of two ranges of dB: less of it says little about the rest

METRICS = {"psnr": "psnr", "ms_ssim": "ms_ssim_db_of_mean"}   # of a curve: where its dB stand among the means


class Curve(NamedTuple):
  """Quality in dB over rate, both means over the images, one point a quality, rising in rate."""
  name: str
  bpp: np.ndarray
  db: np.ndarray
  kind: str = "checkpoint"      # or "baseline", or "published"
  metric: str = "psnr"          # or "ms_ssim", in dB of the mean
  source: str | None = None     # of a published curve

  @classmethod
  def of(cls, entries: Sequence[dict[str, Any]], kind: str = "checkpoint", metric: str = "psnr",
         name: str | None = None) -> "Curve | None":
    """From the entries of one codec, by the bytes of the files, or by the estimate where there are none.

    None when a picture has no such metric, as MS-SSIM below 176 pixels: the rate would be of other pictures.
    """
    if any(image[metric] is None for entry in entries for image in entry["images"]):
      return None
    means = [entry["mean"] for entry in entries]
    rate = "bpp_estimated" if means[0]["bpp"] is None else "bpp"
    bpp, db = np.array(sorted((each[rate], each[METRICS[metric]]) for each in means)).T
    return cls(name or entries[0]["name"], bpp, db, kind, metric)

  def db_at(self, bpp: float) -> float | None:
    """Interpolated over log(bpp); None outside the curve, and where the curve has but one point."""
    if len(self.bpp) < 2 or not np.all(np.diff(self.bpp) > 0) or not self.bpp[0] <= bpp <= self.bpp[-1]:
      return None
    from scipy.interpolate import PchipInterpolator  # slow to import, and `mlic-jax --help` imports this module
    return float(PchipInterpolator(np.log(self.bpp), self.db)(np.log(bpp)))


def bd_rate(curve: Curve, anchor: Curve, method: str = BD_METHOD) -> dict[str, Any]:
  """How far `curve` lies from `anchor`, along the rate and along the quality.

  Returns {"curve", "kind", "checkpoint", "anchor", "metric", "percent", "method", "overlap_db", "reason", "bd_db",
  "overlap_bpp"}. `percent`: how many percent fewer (negative) or more bits at the same quality, the mean over
  `overlap_db`. `bd_db`: how many dB more at the same rate, the mean over `overlap_bpp` of log(bpp): BD-PSNR, or of
  MS-SSIM. Both are None, and `reason` says why, when a curve has too few points, does not rise, or the two share
  too little of their ranges of dB. `bd_db` alone is None when the rates do not overlap.
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
  """Why there is no BD-rate, or None."""
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
  """`curve` cut to the dB of `other` and one point on either side: what lies far outside would bend a single cubic.

  Left whole where fewer than four points would remain.
  """
  first = max(np.searchsorted(curve.db, other.db.min(), "right") - 1, 0)
  last = np.searchsorted(curve.db, other.db.max(), "left") + 1
  if last - first < BD_METHODS["cubic"]:
    return curve
  return curve._replace(bpp=curve.bpp[first:last], db=curve.db[first:last])
