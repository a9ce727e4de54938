"""The rate-distortion plot: checkpoints in colour, JPEG and WebP in grey, names at the lines."""
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlic_jax.evaluation.rd import Curve
from mlic_jax.images import partial_name

# Okabe and Ito, "Color universal design", 2008: distinct for every kind of colour vision. Markers differ too.
COLOURS = (("#0072B2", "o"), ("#D55E00", "D"), ("#009E73", "v"), ("#CC79A7", "P"), ("#E69F00", "X"))
GREYS = (("#555555", "s"), ("#999999", "^"))


def rd_figure(curves: Sequence[Curve], baselines: Sequence[Curve], title: str) -> Figure:
  """The figure; its x axis ends a little after the last point of the checkpoints, and so do the baselines."""
  figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
  axes = figure.add_subplot()
  right = 1.1 * max(curve.bpp[-1] for curve in curves)
  styles = [*zip(baselines, itertools.cycle(GREYS)), *zip(curves, itertools.cycle(COLOURS))]
  ends = []
  for curve, (colour, marker) in styles:
    bpp, psnr = _cut(curve, right)
    axes.plot(bpp, psnr, color=colour)
    inside = curve.bpp <= right
    axes.plot(curve.bpp[inside], curve.psnr[inside], marker, color=colour, markersize=5)
    if len(bpp):
      ends.append((psnr[-1], bpp[-1], curve.name, colour))
  axes.set(xlim=(0, right), xlabel="bits per pixel", ylabel="PSNR (dB), mean over the images")
  axes.set_title(title, loc="left", fontsize="medium")
  axes.grid(color="#e6e6e6")
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  _label(axes, ends)
  return figure


def save_rd_plot(path: str | os.PathLike, curves: Sequence[Curve], baselines: Sequence[Curve],
                 title: str) -> None:
  """Writes the figure as PNG, whole or not at all."""
  partial = partial_name(path)
  try:
    FigureCanvasAgg(rd_figure(curves, baselines, title)).print_png(partial)
    os.replace(partial, Path(path))
  finally:
    partial.unlink(missing_ok=True)


def _cut(curve: Curve, right: float) -> tuple[np.ndarray, np.ndarray]:
  """The points left of `right`, and where the line crosses it."""
  inside = curve.bpp <= right
  bpp, psnr = curve.bpp[inside], curve.psnr[inside]
  crossing = curve.psnr_at(right)
  return (bpp, psnr) if crossing is None else (np.append(bpp, right), np.append(psnr, crossing))


def _label(axes, ends) -> None:
  """Each name beside the end of its line, right of the axes, pushed up where it would lie on another."""
  low, high = axes.get_ylim()
  gap, lowest = 0.05 * (high - low), -np.inf
  for psnr, bpp, name, colour in sorted(ends):
    lowest = max(psnr, lowest + gap)
    leader = None
    if lowest > psnr or bpp < axes.get_xlim()[1]:
      leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(name, (bpp, psnr), xytext=(1.015, lowest), textcoords=("axes fraction", "data"),
                  color=colour, va="center", fontweight="bold", annotation_clip=False, arrowprops=leader)
