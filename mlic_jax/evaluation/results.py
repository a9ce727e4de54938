"""The files of an evaluation: results.json, results.csv, and JSON for the plotting tools of CompressAI.

docs/evaluation.md lists the fields of results.json.
"""
import csv
import dataclasses
import io
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.evaluation.bd_rate import METRICS, Curve, bd_rate
from mlic_jax.evaluation.image_metrics import ImageResult
from mlic_jax.evaluation.report_images import readable

# The rate at the end of the name of a checkpoint, as in mlicpp_q3, mlicpp-0.0130 and mlicpp_lmbda0.05.
RATE = re.compile(r"[-_. ]*(?:q|quality|rate|lambda|lmbda|l)?[-_=]?\d+(?:\.\d+)?$")


def families(checkpoints: Sequence[tuple[Path, list[dict[str, Any]]]]) -> list[tuple[str, list[dict[str, Any]]]]:
  """Groups checkpoints to curves (name, entries). `checkpoints` are pairs of a path and entries in results.json.

  A variable-rate checkpoint is a curve. Single-rate checkpoints form a curve if their configs are equal and their names
  differ only in a rate at the end. If the name is only a rate (mlicpp/0.013), the parent folder names the curve. Latent
  optimization and skip coding give separate curves. Two curves with one name become "name" and "name (2)".
  """
  curves: dict[Any, list[tuple[str, list[dict[str, Any]]]]] = {}
  for index, (path, entries) in enumerate(checkpoints):
    name = entries[0]["name"]
    key: Any = index
    if entries[0]["quality"] is None:
      plain_name = entries[0].get("plain_name", name)
      stem = RATE.sub("", plain_name) or Path(os.path.abspath(path)).parent.name
      key = stem + name.removeprefix(plain_name), json.dumps(entries[0]["config"], sort_keys=True)
    curves.setdefault(key, []).append((name, entries))
  named: list[tuple[str, list[dict[str, Any]]]] = []
  for key, members in curves.items():
    name = key[0] if len(members) > 1 else members[0][0]
    same = sum(re.fullmatch(re.escape(name) + r"( \(\d+\))?", other) is not None for other, _ in named)
    named.append((f"{name} ({same + 1})" if same else name,
                  list(itertools.chain.from_iterable(entries for _, entries in members))))
  return named


def by_name(entries: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
  """Groups entries of baselines to curves (name, entries)."""
  return [(name, list(group)) for name, group in itertools.groupby(entries, lambda entry: entry["name"])]


def assemble(data: dict[str, Any], named: Sequence[tuple[str, list[dict[str, Any]]]],
             baselines: Sequence[tuple[str, list[dict[str, Any]]]], published: Sequence[Curve], *, anchor: str,
             bd_method: str, costs: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the content of results.json for curves (name, entries); `data` has its fields about codec and images."""
  curves = [*curves_of("checkpoint", named), *curves_of("baseline", complete_baselines(baselines, data)), *published]
  anchors = {curve.metric: curve for curve in reversed(curves) if curve.name == anchor}
  entries_of = lambda named: [entry for _, entries in named for entry in entries]
  return {**data, "checkpoints": entries_of(named), "baselines": entries_of(baselines),
          "anchor": anchor, "bd_method": bd_method,
          "bd_rates": [bd_rate(curve, anchors[curve.metric], bd_method) for curve in curves
                       if curve.metric in anchors and curve is not anchors[curve.metric]],
          "curves": [curve_fields(curve) for curve in curves], "costs": costs, "pictures": pictures}


def complete_baselines(baselines: Sequence[tuple[str, list[dict[str, Any]]]], data: dict[str, Any]):
  """Returns the baselines that encoded all images; the means of others are over fewer images and not comparable."""
  return [(name, entries) for name, entries in baselines if len(entries[0]["images"]) == data["number_of_images"]]


def read_curves(results: dict[str, Any], metric: str) -> list[Curve]:
  """Returns the curves of one metric in results.json."""
  return [Curve(each["name"], np.array(each["bpp"]), np.array(each["db"]), each["kind"], metric, each["source"])
          for each in results["curves"] if each["metric"] == metric]


def curves_of(kind: str, named: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Curve]:
  """Returns the curves in each metric that all their images have."""
  curves = [Curve.of(entries, kind, metric, name) for metric in METRICS for name, entries in named]
  return [curve for curve in curves if curve is not None]


def curve_fields(curve: Curve) -> dict[str, Any]:
  """Converts a curve to fields for JSON."""
  return {"name": curve.name, "kind": curve.kind, "metric": curve.metric, "bpp": [float(each) for each in curve.bpp],
          "db": [float(each) for each in curve.db], "source": curve.source}


def write_json(path: Path, content: dict) -> None:
  """Writes a JSON file atomically. ValueError for NaN, which JSON does not support."""
  write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, results: dict[str, Any]) -> None:
  """Writes a CSV file with one row per image and quality of checkpoints and baselines."""
  rows = [{"kind": kind, "codec": entry["name"], "quality": entry["quality"], **image}
          for kind in ("checkpoint", "baseline") for entry in results[f"{kind}s"] for image in entry["images"]]
  text = io.StringIO()
  columns = ["kind", "codec", "quality", *(field.name for field in dataclasses.fields(ImageResult))]
  writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  write_whole(path, text.getvalue())


def write_compressai(folder: Path, named: Sequence[tuple[str, list[dict[str, Any]]]], title: str) -> None:
  """Writes FOLDER/NAME.json for each curve, for `python -m compressai.utils.plot -f FOLDER/*.json -m psnr-rgb`.

  Points rise in rate. MS-SSIM is not in dB, and is omitted if images are too small for it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for file, (name, entries) in zip(_file_names([name for name, _ in named]), named):
    rate = "bpp_estimated" if entries[0]["mean"]["bpp"] is None else "bpp"
    means = sorted((entry["mean"] for entry in entries), key=lambda mean: mean[rate])
    columns = {"bpp": rate, "psnr-rgb": "psnr", "ms-ssim-rgb": "ms_ssim"}
    results = {theirs: [mean[ours] for mean in means] for theirs, ours in columns.items()}
    results = {theirs: values for theirs, values in results.items() if None not in values}
    how = "estimated by likelihoods" if rate == "bpp_estimated" else "of complete files"
    write_json(folder / f"{file}.json",
               {"name": name, "description": f"{title}; rates {how}, means over images", "results": results})


def _file_names(names: Sequence[str]) -> list[str]:
  """Returns a unique file name for each name."""
  taken: list[str] = []
  for name in names:
    stem = file = readable(name)
    number = 1
    while file in taken:
      number += 1
      file = f"{stem}-{number}"
    taken.append(file)
  return taken
