"""Tests that names never become markup of reports, plots and tables."""
import base64
import hashlib
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from helpers.fake_codec import bits_of
from test_report import IMAGE, Page, evaluated_folder, read_results, run_eval  # noqa: F401 (fixtures)

from mlic_jax.evaluation import ablation, baselines, bd_rate, plots, report, report_images
from mlic_jax.evaluation.image_metrics import Coded, measure_baseline

MARKUP = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus='alert(1)", "<!--", "-->",
          "]]>", "&lt;b&gt;", "$js ${css} $$", "</style><style>*{display:none}", "</svg></text></title>", "<b",
          "\u2028</script\u2029>", "javascript:alert(1)", "url(https://example.org/)"]
OF_THE_PROGRAM = {"kind", "metric", "original", "reconstruction", "error", "bits", "picture"}   # no names


def renamed(value, suffix, field=None):
  """results.json with `suffix` behind every text that is a name, or may hold one."""
  if isinstance(value, dict):
    return {key: renamed(each, suffix, key) for key, each in value.items()}
  if isinstance(value, list):
    return [renamed(each, suffix, field) for each in value]
  return value + suffix if isinstance(value, str) and field not in OF_THE_PROGRAM else value


def structure(page):
  """Returns the elements of a page and the names of their attributes, without the values that may hold names."""
  free = {"data-image", "data-name", "aria-label", "content"}
  return [(tag, {key: None if key in free else value for key, value in attributes.items()})
          for tag, attributes in Page(page).elements]


@pytest.mark.parametrize("markup", MARKUP)
def test_a_page_has_the_elements_that_it_has_with_plain_names(results, out, markup):
  of_names = lambda suffix: report.page(renamed(results, suffix), out / "pictures", f"title{suffix}")
  plain, page = of_names("x"), of_names(markup)
  assert structure(page) == structure(plain)
  read = lambda text: json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
  assert [each["image"] for each in read(page)["records"]] == [f"a&b.png{markup}"] * 6
  assert page.count("<script") == page.count("</script>") == 2


def test_the_page_runs_its_own_script_alone_and_loads_data_alone(results, out):
  page = report.page(results, out / "pictures", "title")
  policy, = (each["content"] for each in Page(page).attributes("meta")
             if each.get("http-equiv") == "Content-Security-Policy")
  script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def plotted(folder, name):
  """The elements of a plot with a name, as (tag, names of attributes), and its text."""
  curve = bd_rate.Curve(name, np.array([0.1, 0.2]), np.array([30.0, 31.0]))
  plots.save_rd_plot(folder / "rd.svg", [curve], name)
  tree = xml.etree.ElementTree.parse(folder / "rd.svg")
  return [(each.tag, sorted(each.attrib)) for each in tree.iter()], "".join(tree.getroot().itertext())


@pytest.fixture(scope="module")
def plain_kinds(tmp_path_factory):
  found, _ = plotted(tmp_path_factory.mktemp("plain"), "x" * 20)
  return {tag for tag, _ in found}


@pytest.mark.parametrize("markup", MARKUP)
def test_a_plot_has_the_elements_that_it_has_with_a_plain_name(plain_kinds, tmp_path, markup):
  found, text = plotted(tmp_path, markup)
  assert {tag for tag, _ in found} == plain_kinds
  assert not any(name.startswith("on") for _, names in found for name in names)
  assert markup.strip() in text or any(not each.isprintable() for each in markup)


def test_a_table_of_an_ablation_has_no_markup():
  row = dict(name="<img src=x>", bpp=1.0, psnr=30.0, loss=1.0, relative_bits=0.0, bd_rate=None, relative_loss=0.0)
  assert "<" not in ablation.markdown([row], 5, "<script>")


@pytest.mark.parametrize("changes", [
    {"original": "../../../secret.png"}, {"bits": "/etc/secret.png"}, {"width": '1"><script>'}, {"original": None},
    {"baseline": {"picture": "a/../../b.png"}}, {"bits_of_slices": ["<b>"]}, {"bits_of_slices": None}])
def test_a_record_that_is_not_of_this_program_is_drawn_again(tmp_path, changes):
  """--resume reads files from the folder, which may come from an untrusted source."""
  sweep = {("JPEG 4:2:0", "a"): dict(zip((10, 50), measure_baseline(baselines.JPEG, "a", IMAGE, (10, 50))))}
  images = lambda: report_images.ReportImages(tmp_path, {"a": "digest"}, [baselines.JPEG], sweep, resume=True)
  images().draw("codec", "a", IMAGE, 1, Coded(IMAGE, b"x" * 2000, 15000.0, 0.1, 0.1), bits_of)
  assert not images().is_missing("codec", "a", 1)
  path, = tmp_path.rglob("*.json")
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  assert images().is_missing("codec", "a", 1)
