"""Published rate-distortion curves from papers and their repositories, each with its source.

The files are published/DATASET_METRIC.json, {codec: {"bpp", "psnr" | "ms_ssim", "ms_ssim_db", "source"}}. PSNR is in dB
on RGB, the mean over the images. MS-SSIM in dB is published in two conventions that differ by about 0.35 dB
(metrics.py); the entry `db_convention` of a curve names it if the source does.
"""
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlic_jax.evaluation.baselines import BASELINES
from mlic_jax.evaluation.bd_rate import METRICS, Curve

# {name: (title, number of images)}
DATASETS = {"kodak": ("Kodak", 24), "clic": ("CLIC Professional Valid", 41), "tecnick": ("Tecnick", 100)}

# The default selection. Not every dataset has each curve, and names differ a little between datasets.
FEATURED = ("BPG", "BPG 4:4:4", "VTM-9.1", "VTM-17.0", "Balle2018 hyperprior (paper)", "Minnen2018 (paper)",
            "Cheng2020 (paper)", "Cheng2020 anchor (CompressAI)", "ELIC (paper)", "TCM (Large)", "MLIC", "MLIC+",
            "MLIC++", "HPCM-Large", "DCAE")
# The curves of MS-SSIM belong mostly to models that were trained for it.
FEATURED_MS_SSIM = ("BPG 4:4:4", "VTM-9.1", "Balle2018 hyperprior MS-SSIM (paper)", "Minnen2018 MS-SSIM (paper)",
                    "Balle2018 hyperprior MS-SSIM (CompressAI)", "Minnen2018 MS-SSIM (CompressAI)",
                    "Cheng2020 anchor MS-SSIM (CompressAI)", "ELIC MS-SSIM (paper)", "HPCM-Large MS-SSIM")


class PublishedCurveError(ValueError):
  """The dataset or curve does not exist; the message is one line with those that do."""


def published(dataset: str, metric: str = "psnr") -> dict[str, Curve]:
  """Returns all published curves on "kodak", "clic" or "tecnick" by name, with their sources.

  metric: "psnr" or "ms_ssim", both in dB. Published mean values of MS-SSIM are converted to dB; published dB are
  unchanged. The name of a codec that is also a baseline ends in " (published)".
  """
  if dataset not in DATASETS or metric not in METRICS:
    raise PublishedCurveError(f"no published curves of {metric!r} on {dataset!r}; wanted one of {', '.join(METRICS)} "
                              f"on one of {', '.join(DATASETS)}")
  measured = {baseline.name for baseline in BASELINES.values()}
  curves = {}
  for codec, points in _read(dataset, metric).items():
    name = f"{codec} (published)" if codec in measured else codec
    rising = np.argsort(points["bpp"])
    curves[name] = Curve(name, np.array(points["bpp"])[rising], _decibels(points, metric)[rising], "published", metric,
                         points["source"])
  return curves


def select(dataset: str, names: Sequence[str], metric: str = "psnr") -> list[Curve]:
  """Returns the curves of these names; () selects the featured curves, and ("all",) all.

  A name that only the other metric has is omitted. PublishedCurveError for an unknown name.
  """
  curves = published(dataset, metric)
  if tuple(names) == ("all",):
    return list(curves.values())
  if not names:
    featured = FEATURED if metric == "psnr" else FEATURED_MS_SSIM
    return [curves[name] for name in featured if name in curves]
  known = {name for each in METRICS for name in published(dataset, each)}
  for name in names:
    if name not in known:
      raise PublishedCurveError(f"no published curve {name!r} on {dataset}; wanted one of {', '.join(sorted(known))}")
  return [curves[name] for name in names if name in curves]


def caution(dataset: str, number: int) -> str | None:
  """Returns a warning if curves on `dataset` are not comparable with those of `number` images, or else None."""
  title, images = DATASETS[dataset]
  if number == images:
    return None
  return (f"Published curves are means over the {images} images of {title}, but the others are means over {number}: "
          "do not compare them.")


@functools.cache
def _read(dataset: str, metric: str) -> dict[str, dict]:
  return json.loads((Path(__file__).parent / "published" / f"{dataset}_{metric}.json").read_text("utf-8"))


def _decibels(points: dict, metric: str) -> np.ndarray:
  if metric == "psnr":
    return np.array(points["psnr"])
  if "ms_ssim" in points:
    return -10 * np.log10(1 - np.array(points["ms_ssim"]))
  return np.array(points["ms_ssim_db"])
