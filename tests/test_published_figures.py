"""What the repository says of its trained model: the figures in the documents are those of its results file."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mlic_jax.evaluation.bd_rate import Curve, bd_rate
from mlic_jax.evaluation.results import read_curves
from tools import results_page

ROOT = Path(__file__).parent.parent
QUALITIES = range(1, 7)
MODELS = [path.name for path in sorted((ROOT / "checkpoints").iterdir())]


@pytest.fixture(scope="module")
def results():
  return json.loads((ROOT / "docs" / "results" / "nano_kodak.json").read_text())


@pytest.fixture(scope="module")
def entries(results):
  found = {int(entry["quality"]): entry for entry in results["checkpoints"]}
  assert set(found) == set(QUALITIES)
  return found


def rows(document, pattern):
  """{quality: cells} of the table of a document whose rows match."""
  lines = re.findall(pattern, (ROOT / document).read_text(), re.M)
  return {int(line.split("|")[1]): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


BESIDE = "JPEG 4:2:0", "WebP", "AVIF 4:4:4", "BPG 4:4:4", "VTM-17.0", "MLIC++"  # the codecs beside nano in the README


def psnr_curves(results):
  return {curve["name"]: Curve(curve["name"], np.array(curve["bpp"]), np.array(curve["db"]))
          for curve in results["curves"] if curve["metric"] == "psnr"}


def test_the_table_of_the_readme_is_that_of_the_results(results, entries):
  table, curves = rows("README.md", r"^\| [1-6] \| [01]\.\d{4} \| .*$"), psnr_curves(results)
  for quality in QUALITIES:
    mean = entries[quality]["mean"]
    beside = [curves[name].db_at(mean["bpp"]) for name in BESIDE]
    assert table[quality] == [f"{mean['bpp']:.4f}", f"{mean['psnr']:.2f}", f"{mean['ms_ssim']:.4f}",
                              *("" if db is None else f"{db:.2f}" for db in beside)]


def test_the_columns_of_published_curves_in_the_readme_are_marked(results):
  kinds = {curve["name"]: curve["kind"] for curve in results["curves"]}
  wanted = [f"{name} †" if kinds[name] == "published" else name for name in BESIDE]
  header, = re.findall(r"^\| quality \| nano, bpp .*$", (ROOT / "README.md").read_text(), re.M)
  assert [cell.strip() for cell in header.split("|")[5:-1]] == wanted


def test_every_file_is_within_1_percent_and_48_bytes_of_its_estimate(entries):
  excess = [image["bytes"] - 1.01 * image["bpp_estimated"] * image["height"] * image["width"] / 8
            for entry in entries.values() for image in entry["images"]]
  assert len(excess) == 144 and max(excess) < 48
  assert f"1 % + {max(excess):.1f}" in (ROOT / "docs" / "coding.md").read_text()


def test_every_slice_raises_the_mean_psnr(entries):
  for quality in QUALITIES:
    arrivals = entries[quality]["progressive_mean"][1:]
    assert all(before["psnr"] < after["psnr"] for before, after in zip(arrivals, arrivals[1:]))


def test_the_bd_rates_of_the_readme_are_those_of_the_results(results):
  curves = psnr_curves(results)
  row, = re.findall(r"^\| BD-rate of nano \|.*$", (ROOT / "README.md").read_text(), re.M)
  cells = [cell.strip() for cell in row.split("|")[5:-1]]
  assert cells == [f"{bd_rate(curves['nano'], curves[name])['percent']:+.1f} %" for name in BESIDE]


def test_nano_saves_what_the_readme_says(results):
  curves = psnr_curves(results)
  percent = {name: bd_rate(curves["nano"], curves[name])["percent"] for name in ("AVIF 4:4:4", "HEIC 4:4:4")}
  assert all(value <= -8 for value in percent.values())
  assert f"{-percent['AVIF 4:4:4']:.1f} % fewer bits than AVIF" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_the_row_of_a_model_in_the_readme_has_its_rates_and_bd_rate(model):
  """By the metric that the row names."""
  found = json.loads((ROOT / f"docs/results/{model}_kodak.json").read_text())
  row, = re.findall(rf"^\| \[`checkpoints/{model}`\]\(.*$", (ROOT / "README.md").read_text(), re.M)
  metric, rates, percent = (row.split("|")[i].strip() for i in (2, 3, 6))
  means = [entry["mean"]["bpp"] for entry in found["checkpoints"]]
  assert rates == f"{len(means)}, {means[0]:.2f} to {means[-1]:.2f} bpp"
  curves = {curve.name: curve for curve in read_curves(found, {"MSE": "psnr", "MS-SSIM": "ms_ssim"}[metric])}
  assert percent == f"{bd_rate(curves[model], curves['JPEG 4:2:0'])['percent']:+.1f} %"


def test_nano_ms_ssim_saves_what_the_readme_says():
  found = json.loads((ROOT / "docs/results/nano_ms_ssim_kodak.json").read_text())
  curves = {curve.name: curve for curve in read_curves(found, "ms_ssim")}
  percent = bd_rate(curves["nano_ms_ssim"], curves["AVIF 4:4:4"])["percent"]
  assert percent <= -25 and bd_rate(curves["nano_ms_ssim"], curves["WebP"])["percent"] <= -45
  assert f"{-percent:.1f} % fewer bits than AVIF" in (ROOT / "README.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("model", MODELS)
def test_the_page_of_a_model_is_what_the_command_writes_from_its_results(model):
  found = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs/results").glob(f"{model}_kodak*.json")}
  written = results_page.page(found[f"{model}_kodak"], found.get(f"{model}_kodak_refined"))
  assert (ROOT / "docs/benchmarks" / f"{model}_kodak.md").read_text() == written


@pytest.mark.parametrize("model", MODELS)
def test_the_results_are_those_of_the_model_in_the_repository(model):
  found = json.loads((ROOT / f"docs/results/{model}_kodak.json").read_text())
  config = json.loads((ROOT / "checkpoints" / model / "config.json").read_text())
  assert {entry["fingerprint"] for entry in found["checkpoints"]} == {config["fingerprint"]}
  assert config["fingerprint"] in (ROOT / "checkpoints" / model / "README.md").read_text()


def test_latent_optimization_of_nano_is_below_bpg_and_saves_what_the_readme_says():
  curves = psnr_curves(json.loads((ROOT / "docs/results/nano_kodak_refined.json").read_text()))
  percent = {name: bd_rate(curves["nano, refined 100"], curves[name])["percent"] for name in ("nano", "BPG 4:4:4")}
  assert percent["BPG 4:4:4"] <= -1
  assert all(f"{value:+.1f} %" in (ROOT / "README.md").read_text() for value in percent.values())


@pytest.mark.parametrize("name, most", [("nano_kodak_refined_before_h200", -8), ("nano_kodak_refined", -7)])
def test_latent_optimization_saves_what_the_readme_says_and_improves_every_image(name, most):
  found = json.loads((ROOT / f"docs/results/{name}.json").read_text())
  curves = psnr_curves(found)
  percent = bd_rate(curves["nano, refined 100"], curves["nano"])["percent"]
  assert percent <= most and f"{percent:.1f} %" in (ROOT / "README.md").read_text()
  of = {(entry["name"], entry["quality"]): entry for entry in found["checkpoints"]}
  pairs = [(of["nano, refined 100", quality]["refine"]["lmbda"], *images) for quality in QUALITIES
           for images in zip(of["nano, refined 100", quality]["images"], of["nano", quality]["images"], strict=True)]
  loss = lambda lmbda, image: image["bpp"] + lmbda * image["mse"]
  assert len(pairs) == 144
  for lmbda, refined, plain in pairs:
    assert refined["name"] == plain["name"] and loss(lmbda, refined) <= loss(lmbda, plain)
