"""Tests of the report: one file that needs no network, with numbers of results.json only."""
import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.fake_codec import FakeCodec, SingleRateCodec, bits_of
from PIL import Image

import mlic_jax
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.data.image_io import save_image
from mlic_jax.evaluation import baselines, bit_maps, codec_cost, plots, report, report_images
from mlic_jax.evaluation.image_metrics import Coded, measure_baseline

VOID = {"meta", "input", "br", "img", "path", "circle", "rect"}
rows, columns = np.mgrid[:208, :272][..., None] / 9
IMAGE = np.uint8(127 + 100 * np.sin(rows + [0, 1, 2]) * np.cos(columns * [1, 0.7, 1.3]))


class Page(HTMLParser):
  """Collects the elements of a page and the text by tag; fails if tags do not close in order."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.cells, self.open = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, tag

  def handle_data(self, text):
    if self.open and self.open[-1] == "td":
      self.cells.append(text)

  def attributes(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(name="evaluate", scope="module")
def run_eval(tmp_path_factory):
  """eval.py on two images: the folder that it wrote. Figures of the model, and plots beside the page, are stubs."""
  sizes = dict(parameters=81_234, parameters_decoder=45_678, kmacs_per_pixel=123.4, kmacs_per_pixel_decoder=56.7)
  def evaluate(*arguments, codec=FakeCodec):
    place = tmp_path_factory.mktemp("report")
    (place / "photos").mkdir()
    save_image(place / "photos" / "a&b.png", IMAGE)
    save_image(place / "photos" / "c.png", IMAGE[:40, ::-1])
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(vars(mlic_jax), "Codec", codec)
      patch.setattr(codec_cost, "_size", lambda config: sizes)
      patch.setattr(plots, "save_rd_plot", lambda path, *_: path.touch())
      patch.setattr(bit_maps, "bits_map", lambda codec, *image: bits_of(*image))
      given = ["--data", str(place / "photos"), "--out", str(place / "out"), *arguments]
      assert main_of_one_command("eval", "eval.py", given) == 0
    return place / "out"
  return evaluate


@pytest.fixture(name="out", scope="module")
def evaluated_folder(evaluate):
  return evaluate("--ckpt", "x", "--published", "kodak", "--limit", "1")


@pytest.fixture(scope="module")
def text(out):
  return (out / "report.html").read_text()


@pytest.fixture(name="results", scope="module")
def read_results(out):
  return json.loads((out / "results.json").read_text())


def numbers(value):
  """Returns every number in results.json."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return {number for each in value for number in numbers(each)}
  return {float(value)} if isinstance(value, (int, float)) else set()


def test_the_page_is_well_formed_and_says_what_it_is_of(text):
  page = Page(text)
  assert len(page.attributes("figure")) == 1 and page.attributes("figure")[0]["data-image"] == "a&b.png"
  assert page.attributes("html") == [{"lang": "en"}]
  ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
  assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(text):
  assert "://" not in text
  for _, attributes in Page(text).elements:
    assert not {"src", "srcset", "action", "data"} & set(attributes)
    assert attributes.get("href", "#").startswith("#")
  assert not re.search(r"@import|url\((?!\$|#)", text)   # but for an image of its own, and the frame of a plot
  assert all(uri.startswith("data:image/") for uri in data_of(text)["pictures"].values())


def data_of(text):
  return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_every_number_in_the_tables_is_in_results_json(text, results):
  known = numbers(results) | {number / 2**20 for number in numbers(results)}   # memory is shown in MiB
  cells = [cell for cell in Page(text).cells if re.fullmatch(r"[-+]?[\d.,]+(?: to [\d.,]+)?", cell)]
  assert len(cells) > 50
  for cell in cells:
    for number in cell.replace(",", "").split(" to "):
      digits = len(number.partition(".")[2])
      assert any(f"{each:.{digits}f}" == number.lstrip("+") for each in known), cell


def test_every_point_of_the_plots_is_in_results_json(text, results):
  points = {(f"{bpp:.4f}", f"{db:.3f}") for curve in results["curves"] for bpp, db in zip(curve["bpp"], curve["db"])}
  drawn = [(each["data-bpp"], each["data-db"]) for each in Page(text).attributes("circle")]
  assert len(drawn) > 50 and set(drawn) <= points
  checkpoint = next(curve for curve in results["curves"] if curve["kind"] == "checkpoint")
  assert {(f"{bpp:.4f}", f"{db:.3f}") for bpp, db in zip(checkpoint["bpp"], checkpoint["db"])} <= set(drawn)


def test_the_images_are_in_the_page_with_the_figures_of_results_json(text, results, out):
  data = data_of(text)
  assert data["records"] == results["pictures"] and len(data["records"]) == 6
  for record in data["records"]:
    entry = next(entry for entry in results["checkpoints"] if entry["quality"] == record["quality"])
    image = next(image for image in entry["images"] if image["name"] == record["image"])
    assert (record["bytes"], record["psnr"]) == (image["bytes"], image["psnr"])
    for each in "original", "reconstruction", "error", "bits":
      kind, _, content = data["pictures"][record[each]].partition(";base64,")
      assert Image.open(io.BytesIO(base64.b64decode(content))).format == kind.partition("/")[2].upper()


def test_the_rates_and_the_wipe_answer_to_the_keyboard(text):
  page = Page(text)
  sliders = [each for each in page.attributes("input") if each["type"] == "range"]
  assert len(sliders) == 2 and sliders[0]["max"] == "5" and sliders[1]["aria-label"]
  assert [each["value"] for each in page.attributes("option")] == [
      "reconstruction", "error", "0", "1", "2", "original", "baseline"]
  assert all(each["tabindex"] == "0" for each in page.attributes("g") if "curve" in each.get("class", ""))


def test_the_baseline_beside_an_image_is_the_largest_file_that_is_not_larger(results):
  for record in results["pictures"]:
    baseline = record["baseline"]
    codec, = (each for each in baselines.BASELINES.values() if each.name == baseline["name"])
    assert len(codec.encode(IMAGE, baseline["quality"])) == baseline["bytes"] <= record["bytes"]
    assert len(codec.encode(IMAGE, baseline["quality"] + 1)) > record["bytes"]


def test_the_best_baseline_is_shown(results):
  # Of JPEG and WebP, on a smooth image, WebP.
  assert {record["baseline"]["name"] for record in results["pictures"]} == {"WebP"}


def test_single_rates_estimates_and_no_images_have_a_page_too(evaluate):
  single = (evaluate("--ckpt", "s_q20", "s_q40", "--estimate", "--baselines", "none", codec=SingleRateCodec)
            / "report.html").read_text()
  assert len(Page(single).attributes("figure")) == 2 and "estimated" in single
  assert 'value="baseline"' not in single
  bare = evaluate("--ckpt", "x", "--baselines", "jpeg", "--qualities", "1,2", "--report-images", "0")
  assert not (bare / "report.html").exists() and not (bare / "pictures").exists()


def test_a_name_cannot_end_the_script(results, out):
  bad = json.loads(json.dumps(results))
  bad["pictures"][0]["image"] = "</script><b>"
  page = report.page(bad, out / "pictures", "title")
  assert "</script><b>" not in page and page.count("</script>") == 2


# --- the maps ------------------------------------------------------------------------

def test_the_map_of_bits_is_one_tile_for_everything_and_one_per_slice():
  window = (slice(0, 208), slice(0, 272))
  tiles, scales = report_images._bits_tiles(bits_of(IMAGE, 1), window)
  assert tiles.shape == (3 * 13, 17)                     # 208x272 pixels in places of 16x16
  assert scales["all"] == pytest.approx((3 + 1 + 16 / 16) / 256) and scales["slice"] == pytest.approx(3 / 256)
  assert [tiles[row, 0] for row in (0, 13, 26)] == [255, 255, 85]


def test_a_large_image_is_shown_by_its_middle():
  image = np.zeros((2000, 700, 3), np.uint8)
  rows, columns = report_images._middle(image)
  assert (rows.start % 16, rows.stop - rows.start) == (0, report_images.SIDE)
  assert (columns.start, columns.stop) == (0, 700)
  assert abs((rows.start + rows.stop) / 2 - 1000) <= 16


def test_an_error_map_is_brightest_where_the_error_is(tmp_path):
  worse = IMAGE.copy()
  worse[:100] ^= 0x20
  blob = report_images._error_map(IMAGE, worse)
  brightness = np.asarray(Image.open(io.BytesIO(blob)).convert("L"), float)
  assert brightness[:40].mean() > 3 * brightness[60:].mean() + 50


def test_images_are_drawn_once_and_again_for_another_image_of_the_name(tmp_path):
  sweep = {("JPEG 4:2:0", "a"): dict(zip((10, 50), measure_baseline(baselines.JPEG, "a", IMAGE, (10, 50))))}
  coded = Coded(IMAGE, b"x" * 2000, 15000.0, 0.1, 0.1)
  drawn = report_images.ReportImages(tmp_path, {"a": "digest"}, [baselines.JPEG], sweep)
  assert drawn.is_missing("codec", "a", 1) and not drawn.is_missing("codec", "other", 1)
  drawn.draw("codec", "a", IMAGE, 1, coded, bits_of)
  assert not drawn.is_missing("codec", "a", 1)
  assert drawn.is_missing("codec", "a", 2) and drawn.is_missing("another codec", "a", 1)
  again = lambda pixels, resume: report_images.ReportImages(tmp_path, {"a": pixels}, [baselines.JPEG], sweep, resume)
  assert not again("digest", True).is_missing("codec", "a", 1)
  assert again("digest", False).is_missing("codec", "a", 1) and again("other pixels", True).is_missing("codec", "a", 1)
