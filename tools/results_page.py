"""Writes the results page of a model from its results.json, and the table of the README.

    python tools/results_page.py docs/results/nano_kodak.json [--refined docs/results/nano_kodak_refined.json] \\
        --out docs/benchmarks/nano_kodak.md [--readme README.md]

The JSON files are those of the two commands on the page, with the MODEL of the file names MODEL_kodak*.json.
"""
import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.atomic_io import write_whole
from mlic_jax.evaluation.bd_rate import bd_rate
from mlic_jax.evaluation.results import read_curves

BESIDE = {"psnr": ("JPEG 4:2:0", "WebP", "AVIF 4:4:4", "BPG 4:4:4", "VTM-17.0", "MLIC++"),
          # Two that were trained for MS-SSIM.
          "ms_ssim": ("JPEG 4:2:0", "WebP", "AVIF 4:4:4", "BPG 4:4:4", "Balle2018 hyperprior MS-SSIM (CompressAI)",
                      "Cheng2020 anchor MS-SSIM (CompressAI)")}
PROSE = 106     # characters of a line
METRIC = {"psnr": "PSNR", "ms_ssim": "MS-SSIM"}


def page(results: dict[str, Any], refined: dict[str, Any] | None = None) -> str:
  """Returns the Markdown page of one variable-rate model on Kodak."""
  name, entries = results["checkpoints"][0]["name"], results["checkpoints"]
  lines = [f"# {name} on Kodak", "",
           "<!-- Written by tools/results_page.py from docs/results/; do not edit. -->", "",
           *_heading(results), "", "## Rate and distortion", "", *_command(name, "--progressive"), "",
           *rd_table(results, "psnr"), "",
           "The other columns are the PSNR in dB at the same rate. Columns with † are published results.", ""]
  if read_curves(results, "ms_ssim"):
    lines += ["MS-SSIM, in dB:", "", *rd_table(results, "ms_ssim"), ""]
  files = sum(len(entry["images"]) for entry in entries)
  lines += [f"BD-rates of {name} (pchip, mean curves):", "", *_bd_table(results), "",
            f"Each of the {files} files is at most 1 % + {excess(results):.1f} bytes longer than the model's estimate.",
            "", *_costs(results), "", *_progressive(entries)]
  if refined:
    lines += ["", *_refined(results, refined)]
  return "\n".join(lines) + "\n"


def rd_table(results: dict[str, Any], metric: str) -> list[str]:
  """Returns the lines of the table with the rate points of the model and other codecs at the same rates."""
  curves = {curve.name: curve for curve in read_curves(results, metric)}
  beside = [name for name in BESIDE[metric] if name in curves]
  name = results["checkpoints"][0]["name"]
  titles = [f"{each} †" if curves[each].kind == "published" else each for each in beside]
  own = {"psnr": [name, f"{name}, MS-SSIM"], "ms_ssim": [name]}[metric]
  rows = []
  for entry in results["checkpoints"]:
    mean = entry["mean"]
    values = {"psnr": [f"{mean['psnr']:.2f}", f"{mean['ms_ssim']:.4f}"],
              "ms_ssim": [f"{mean['ms_ssim_db_of_mean']:.2f}"]}[metric]
    others = [curves[each].db_at(mean["bpp"]) for each in beside]
    rows.append([f"{entry['quality']:g}", f"{mean['bpp']:.4f}", *values,
                 *("" if db is None else f"{db:.2f}" for db in others)])
  rates = [_percent(bd_rate(curves[name], curves[each])["percent"]) for each in beside]
  return _table(["quality", f"{name}, bpp", *own, *titles],
                [*rows, [f"BD-rate of {name}", "", *("" for _ in own), *rates]])


def excess(results: dict[str, Any]) -> float:
  """Returns the most bytes by which a file exceeds 101 % of its estimate."""
  return max(image["bytes"] - 1.01 * image["bpp_estimated"] * image["height"] * image["width"] / 8
             for entry in results["checkpoints"] for image in entry["images"])


def write_readme(path: Path, results: dict[str, Any]) -> None:
  """Replaces the table of the model in the README."""
  name, text = results["checkpoints"][0]["name"], path.read_text()
  table = re.compile(rf"^\| quality \| {re.escape(name)}, bpp \|.*\n(\|.*\n)+", re.M)
  if len(table.findall(text)) != 1:
    raise SystemExit(f"{path}: wanted one table that starts with '| quality | {name}, bpp |'")
  write_whole(path, table.sub(lambda _: "\n".join(rd_table(results, "psnr")) + "\n", text))


def _heading(results: dict[str, Any]) -> list[str]:
  entry = results["checkpoints"][0]
  return textwrap.wrap(f"The model is `checkpoints/{entry['name']}` with fingerprint {entry['fingerprint']}. Rates are "
                       f"those of complete files, and every file was decoded ({results['date']}, mlic_jax "
                       f"{results['version']}, {results['costs'][0]['device']}).", PROSE)


def _command(name: str, more: str) -> list[str]:
  return ["```bash", f"mlic-jax eval --ckpt checkpoints/{name} --data KODAK --baselines all --published kodak {more} "
          f"--out out/{name}", "```"]


def _bd_table(results: dict[str, Any]) -> list[str]:
  name, found = results["checkpoints"][0]["name"], {}
  for metric in METRIC:
    curves = {curve.name: curve for curve in read_curves(results, metric)}
    for other in [each for each in curves.values() if each.name != name] if name in curves else []:
      label = f"{other.name} †" if other.kind == "published" else other.name
      found.setdefault(label, {})[metric] = _percent(bd_rate(curves[name], other)["percent"])
  return _table(["against", *METRIC.values()], [[label, *(values.get(metric, "") for metric in METRIC)]
                                               for label, values in found.items()])


def _costs(results: dict[str, Any]) -> list[str]:
  cost = results["costs"][0]
  return [f"{cost['parameters'] / 1e6:.2f} M parameters, {cost['kmacs_per_pixel']:.1f} kMAC per pixel; "
          f"{cost['encode_s']:.2f} s to encode an image and {cost['decode_s']:.2f} s to decode it;",
          f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB peak memory of the evaluation."]


def _progressive(entries: list[dict[str, Any]]) -> list[str]:
  steps = [step["slices"] for step in entries[0]["progressive_mean"]][1:]
  rows = [[f"{entry['quality']:g}", *(f"{step['bytes']:.0f}, {step['psnr']:.2f}"
                                      for step in entry["progressive_mean"][1:])] for entry in entries]
  titles = [f"{n} slice{'s' * (n > 1)}" for n in steps[:-1]] + [f"all {steps[-1]}"]
  return ["## Progressive decoding", "", "Bytes received and PSNR in dB, from the same command.", "",
          *_table(["quality", *titles], rows)]


def _refined(results: dict[str, Any], refined: dict[str, Any]) -> list[str]:
  plain = [entry for entry in refined["checkpoints"] if not entry["refine"]]
  others = [entry for entry in refined["checkpoints"] if entry["refine"]]
  name, budget = plain[0]["name"], others[0]["refine"]["budget"]
  rows = []
  for before, after in zip((entry["mean"] for entry in plain), (entry["mean"] for entry in others), strict=True):
    rows.append([f"{before['bpp']:.4f}", f"{after['bpp']:.4f}", f"{100 * (after['bpp'] / before['bpp'] - 1):+.1f} %",
                 f"{before['psnr']:.2f}", f"{after['psnr']:.2f}", f"{after['psnr'] - before['psnr']:+.2f}"])
  rows = [[f"{entry['quality']:g}", *row] for entry, row in zip(plain, rows)]
  fingerprint, model = plain[0]["fingerprint"], results["checkpoints"][0]["fingerprint"]
  about = ([] if fingerprint == model else
           ["", f"These are results of an earlier version of the model, with fingerprint {fingerprint}."])
  lines = ["## Latent optimization", "", *_command(name, f"--refine {budget}"), *about, "",
           *_table(["quality", "bpp", "optimized", "", "PSNR dB", "optimized", ""], rows), "",
           f"BD-rate of {name} with `--refine {budget}`:", ""]
  found = {}
  for metric in METRIC:
    curves = {curve.name: curve for curve in read_curves(refined, metric)}
    own = curves[others[0]["name"]]
    for other in [name, "WebP", "AVIF 4:4:4", "HEIC 4:4:4", "Balle2018 hyperprior (paper)", "BPG 4:4:4", "VTM-9.1"]:
      if other in curves:
        label = f"{other} †" if curves[other].kind == "published" else other
        found.setdefault(label, {})[metric] = _percent(bd_rate(own, curves[other])["percent"])
  return lines + _table(["against", *METRIC.values()], [[label, *(values.get(metric, "") for metric in METRIC)]
                                                       for label, values in found.items()])


def _percent(value: float | None) -> str:
  return "" if value is None else f"{value:+.1f} %"


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
  line = lambda cells: ("| " + " | ".join(cells) + " |").replace("|  |", "| |").replace("|  |", "| |")
  return [line(titles), "|" + "---|" * len(titles), *map(line, rows)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("results", type=Path, help="The results.json of the plain evaluation.")
  parser.add_argument("--refined", type=Path, help="The results.json with latent optimization. Default: no section.")
  parser.add_argument("--out", type=Path, required=True, help="Write the page to this file.")
  parser.add_argument("--readme", type=Path, help="Replace the table of the model in this file. Default: no file.")
  args = parser.parse_args()
  results = json.loads(args.results.read_text())
  write_whole(args.out, page(results, json.loads(args.refined.read_text()) if args.refined else None))
  if args.readme:
    write_readme(args.readme, results)


if __name__ == "__main__":
  main()
