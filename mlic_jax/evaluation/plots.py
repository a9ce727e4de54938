"""Rate-distortion plots: checkpoints in color, baselines in gray, published curves dashed, with names at the lines."""
import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

from mlic_jax.atomic_io import whole_file
from mlic_jax.evaluation.bd_rate import Curve
from mlic_jax.evaluation.matplotlib_settings import default_settings

# These imports follow matplotlib_settings, which sets the backend first.
from matplotlib.backends.backend_agg import FigureCanvasAgg  # isort: skip
from matplotlib.backends.backend_svg import FigureCanvasSVG  # isort: skip
from matplotlib.figure import Figure  # isort: skip

# Okabe and Ito, "Color Universal Design", 2008: distinct for every kind of color vision. Markers differ as well.
COLORS = (("#0072B2", "o"), ("#D55E00", "D"), ("#009E73", "v"), ("#CC79A7", "P"), ("#E69F00", "X"), ("#56B4E9", "*"))
GRAYS = (("#555555", "s"), ("#888888", "^"))
PUBLISHED = (("#56708f", "--"), ("#8f7356", "-."), ("#777777", ":"))
STYLES = {"checkpoint": COLORS, "baseline": GRAYS}
Y_LABEL = {"psnr": "PSNR (dB), mean over the images", "ms_ssim": "MS-SSIM (dB), of the mean over the images"}


# Of more than PUBLISHED_MAX published curves, which would hide each other, only LANDMARKS are plotted.
LANDMARKS = ("BPG", "BPG 4:4:4", "VTM-17.0", "Balle2018 hyperprior (paper)", "MLIC++", "HPCM-Large")
PUBLISHED_MAX = 8


def curves_to_plot(curves: Sequence[Curve]) -> list[Curve]:
  """Returns all measured curves and the published ones; of more than PUBLISHED_MAX published ones, only LANDMARKS."""
  published = [curve for curve in curves if curve.kind == "published"]
  if len(published) <= PUBLISHED_MAX:
    return list(curves)
  return [curve for curve in curves if curve.kind != "published" or curve.name in LANDMARKS]


def rd_figure(curves: Sequence[Curve], title: str, x_label: str = "bits per pixel") -> Figure:
  """Draws curves of one metric; the x axis ends a little after the last point of the checkpoints."""
  figure = Figure(figsize=(7, max(4.5, 0.3 * len(curves))), dpi=150, layout="constrained")
  axes = figure.add_subplot()
  checkpoints = [curve for curve in curves if curve.kind == "checkpoint"]
  right = 1.1 * max(curve.bpp[-1] for curve in checkpoints or curves)
  styles = {kind: itertools.cycle(each) for kind, each in STYLES.items()}
  ends, dashes = [], itertools.cycle(PUBLISHED)
  for curve in sorted(curves, key=lambda curve: ("published", "baseline", "checkpoint").index(curve.kind)):
    bpp, db = _cut(curve, right)
    if curve.kind == "published":
      color, dash = next(dashes)
      axes.plot(bpp, db, dash, color=color, linewidth=1)
    else:
      color, marker = next(styles[curve.kind])
      axes.plot(bpp, db, color=color)
      inside = curve.bpp <= right
      axes.plot(curve.bpp[inside], curve.db[inside], marker, color=color, markersize=5)
    if len(bpp):
      ends.append((db[-1], bpp[-1], curve.name, color, "normal" if curve.kind == "published" else "bold"))
  axes.set(xlim=(0, right), xlabel=x_label, ylabel=Y_LABEL[curves[0].metric])
  axes.set_title(title, loc="left", fontsize="medium", parse_math=False)   # a name may hold a "$"
  axes.grid(color="#e6e6e6")
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  _label(axes, ends)
  return figure


def save_rd_plot(path: str | os.PathLike, curves: Sequence[Curve], title: str, x_label: str = "bits per pixel") -> None:
  """Writes the figure as PNG or SVG, by the extension of `path`, atomically."""
  # Text in an SVG remains text, which can be searched and edited. Without dates and random names, equal plots are equal
  # files.
  settings = default_settings(**{"svg.fonttype": "none", "svg.hashsalt": "mlic_jax"})
  with settings, whole_file(path) as partial, warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing")   # the font may lack the script of a name
    figure = rd_figure(curves, title, x_label)
    if Path(path).suffix == ".svg":
      FigureCanvasSVG(figure).print_svg(partial, metadata={"Date": None})
    else:
      FigureCanvasAgg(figure).print_png(partial)


def _cut(curve: Curve, right: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points of a curve left of `right`, and its crossing with `right`."""
  inside = curve.bpp <= right
  bpp, db = curve.bpp[inside], curve.db[inside]
  crossing = curve.db_at(right)
  return (bpp, db) if crossing is None else (np.append(bpp, right), np.append(db, crossing))


def _label(axes, ends) -> None:
  """Writes each name beside the end of its line, right of the axes, without overlaps."""
  low, high = axes.get_ylim()
  gap = 0.22 / axes.figure.get_size_inches()[1] * (high - low)
  heights = spread([end[0] for end in ends], gap, low, high)
  for height, (db, bpp, name, color, weight) in zip(heights, ends):
    leader = None
    if abs(height - db) > gap / 4 or bpp < axes.get_xlim()[1]:
      leader = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 3,
                "relpos": (0, 0.5)}
    axes.annotate(name, (bpp, db), xytext=(1.015, height), textcoords=("axes fraction", "data"), color=color,
                  va="center", fontweight=weight, fontsize="small", annotation_clip=False, arrowprops=leader,
                  parse_math=False)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
  """Moves positions into low..high and at least `gap` apart, in the same order, with the smallest sum of squares.

  If they do not fit, they are evenly spaced.
  """
  order, count = np.argsort(positions, kind="stable"), len(positions)
  gap = min(gap, (high - low) / max(count - 1, 1))
  steps = gap * np.arange(count)
  moved = np.empty(count)
  # Positions minus their steps must not decrease: this is isotonic regression.
  levels = isotonic_regression(np.take(positions, order) - steps).x
  moved[order] = np.clip(levels, low, high - gap * (count - 1)) + steps
  return moved.tolist()
