"""Tests of rate-distortion curves, BD-rates, published curves and plots."""
import math

import numpy as np
import pytest
from PIL import Image

from mlic_jax.evaluation import plots, published_curves, results
from mlic_jax.evaluation.bd_rate import BD_METHODS, Curve, bd_rate

ANCHOR = Curve("JPEG", np.array([0.2, 0.4, 0.8, 1.6]), np.array([26.0, 29.0, 32.0, 35.0]), "baseline")


# --- BD-rate and BD-PSNR -------------------------------------------------------------

@pytest.mark.parametrize("method", BD_METHODS)
@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_the_bd_rate_of_a_curve_shifted_in_rate_is_the_shift(factor, method):
  result = bd_rate(Curve("shifted", ANCHOR.bpp * factor, ANCHOR.db), ANCHOR, method)
  assert result["percent"] == pytest.approx(100 * (factor - 1))
  assert (result["curve"], result["anchor"], result["method"]) == ("shifted", "JPEG", method)
  assert result["overlap_db"] == [26.0, 35.0]


@pytest.mark.parametrize("method", BD_METHODS)
def test_the_bd_psnr_of_a_curve_shifted_in_quality_is_the_shift(method):
  result = bd_rate(Curve("shifted", ANCHOR.bpp, ANCHOR.db + 1.5), ANCHOR, method)
  assert result["bd_db"] == pytest.approx(1.5) and result["overlap_bpp"] == [0.2, 1.6]


def test_the_bd_rate_does_not_mind_an_anchor_with_a_wider_sweep():
  short = Curve("short", ANCHOR.bpp[1:3] * 0.7, ANCHOR.db[1:3])
  assert bd_rate(short, ANCHOR)["percent"] == pytest.approx(-30)


def test_a_cubic_is_fitted_where_the_other_curve_is():
  bpp = np.geomspace(0.1, 6.4, 13)
  bent = Curve("bent", bpp, 20 + 6 * np.log2(bpp / 0.1) - 0.003 * np.log2(bpp / 0.1)**4)
  narrow = Curve("narrow", bent.bpp[4:9] * 0.9, bent.db[4:9])
  assert bd_rate(narrow, bent, "cubic")["percent"] == pytest.approx(-10, abs=0.5)


@pytest.mark.parametrize("bpp, db, reason", [
    ([0.5], [30.0], "a curve needs two points"),
    ([0.5, 0.9], [30.0, 29.0], "PSNR does not rise"),
    ([0.5, 0.9], [31.0, 42.0], "too little overlap: 31.0 to 42.0 dB against 26.0 to 35.0 dB"),
    ([0.1, 0.2], [20.0, 22.0], "too little overlap")])
def test_there_is_no_bd_rate_without_two_rising_and_overlapping_curves(bpp, db, reason):
  result = bd_rate(Curve("odd", np.array(bpp), np.array(db)), ANCHOR)
  assert result["percent"] is None and result["bd_db"] is None and reason in result["reason"]


def test_a_cubic_wants_four_points():
  result = bd_rate(Curve("short", ANCHOR.bpp[:3], ANCHOR.db[:3]), ANCHOR, "cubic")
  assert result["percent"] is None and result["reason"] == "3 points; cubic needs 4"


def test_curves_that_share_quality_but_no_rate_have_a_bd_rate_alone():
  result = bd_rate(Curve("far", ANCHOR.bpp * 100, ANCHOR.db), ANCHOR)
  assert result["percent"] == pytest.approx(9900) and result["bd_db"] is None and result["overlap_bpp"] is None


def test_a_curve_is_interpolated_over_the_logarithm_of_the_rate_and_never_beyond_its_ends():
  assert ANCHOR.db_at(0.4) == pytest.approx(29)
  assert ANCHOR.db_at(0.4 * math.sqrt(2)) == pytest.approx(30.5)
  assert ANCHOR.db_at(0.19) is None and ANCHOR.db_at(1.7) is None


def test_a_curve_is_of_all_images_or_there_is_none():
  mean = {"bpp": 0.5, "psnr": 30.0, "ms_ssim_db_of_mean": 12.0}
  entries = [{"name": "x", "images": [{"psnr": 30.0, "ms_ssim": 0.9}, {"psnr": 30.0, "ms_ssim": None}], "mean": mean}]
  assert Curve.of(entries).db.tolist() == [30.0] and Curve.of(entries, metric="ms_ssim") is None
  entries[0]["images"].pop()
  assert Curve.of(entries, metric="ms_ssim").db.tolist() == [12.0]


# --- published curves ----------------------------------------------------------------

@pytest.mark.parametrize("dataset, name, percent", [
    ("kodak", "MLIC", -8.06), ("kodak", "MLIC+", -11.41), ("kodak", "MLIC++", -13.41),
    ("clic", "MLIC", -8.79), ("clic", "MLIC+", -12.56), ("clic", "MLIC++", -13.09)])
def test_the_papers_table_comes_out_of_the_published_curves(dataset, name, percent):
  # The papers print -8.05, -11.39, -13.39 for Kodak, and -8.79, -12.56, -13.08 for CLIC.
  curves = published_curves.published(dataset)
  assert bd_rate(curves[name], curves["VTM-17.0"], "cubic")["percent"] == pytest.approx(percent, abs=0.02)


@pytest.mark.parametrize("dataset", published_curves.DATASETS)
@pytest.mark.parametrize("metric", ["psnr", "ms_ssim"])
def test_every_published_curve_rises_and_names_its_source(dataset, metric):
  curves = published_curves.published(dataset, metric)
  assert curves
  for curve in curves.values():
    assert len(curve.bpp) == len(curve.db) >= 4 and np.all(np.diff(curve.bpp) > 0) and np.all(np.diff(curve.db) > 0)
    assert 0 < curve.bpp[0] and 4 < curve.db[0] < curve.db[-1] < 60
    assert "https://" in curve.source and (curve.kind, curve.metric) == ("published", metric)


def test_published_and_measured_curves_do_not_share_a_name():
  assert "WebP (published)" in published_curves.published("kodak") and "WebP" not in published_curves.published("kodak")


def test_the_best_known_curves_are_chosen_unless_others_are_named():
  featured = [curve.name for curve in published_curves.select("kodak", ())]
  assert {"VTM-17.0", "MLIC++", "BPG 4:4:4"} <= set(featured)
  assert len(featured) < len(published_curves.published("kodak"))
  assert [curve.name for curve in published_curves.select("clic", ("MLIC+",))] == ["MLIC+"]
  assert len(published_curves.select("clic", ("all",))) == len(published_curves.published("clic"))
  assert published_curves.select("kodak", ("MLIC++",), "ms_ssim") == []   # its authors give none


def test_published_curves_beside_other_images_come_with_a_caution():
  assert published_curves.caution("kodak", 24) is None
  assert "the 24 images of Kodak, but the others are means over 5" in published_curves.caution("kodak", 5)


# --- checkpoints as curves -----------------------------------------------------------

def entry(name, quality=None, **config):
  return [{"name": name, "quality": quality, "config": config}]


@pytest.mark.parametrize("names, curves", [
    (["mlic_q1", "mlic_q2"], ["mlic"]),
    (["mlic-0.0018", "mlic-0.013"], ["mlic"]),
    (["mlic_lmbda0.05", "mlic_lmbda0.1", "other_lmbda0.1"], ["mlic", "other_lmbda0.1"]),
    (["0.0018", "0.0130"], ["runs"]),                    # of the folder above
    (["a", "b"], ["a", "b"]),
    (["mlic_q1", "b", "mlic_q2"], ["mlic", "b"])])
def test_single_rates_are_one_curve_when_only_the_rate_in_the_name_differs(names, curves):
  checkpoints = [(f"runs/{name}", entry(name, N=1)) for name in names]
  assert [name for name, _ in results.families(checkpoints)] == curves


def test_another_architecture_is_another_curve_and_equal_names_are_told_apart():
  checkpoints = [("a/mlic_q1", entry("mlic_q1", N=1)), ("a/mlic_q2", entry("mlic_q2", N=1)),
                 ("b/mlic_q1", entry("mlic_q1", N=2)), ("b/mlic_q2", entry("mlic_q2", N=2))]
  assert [name for name, _ in results.families(checkpoints)] == ["mlic", "mlic (2)"]


def test_variable_rate_checkpoints_are_curves_of_their_own():
  checkpoints = [("a/v_q1", entry("v_q1", 1, N=1)), ("a/v_q2", entry("v_q2", 1, N=1))]
  assert [name for name, _ in results.families(checkpoints)] == ["v_q1", "v_q2"]


# --- the plot ------------------------------------------------------------------------

def test_the_plot_names_every_curve_beside_it_and_no_two_names_overlap(tmp_path):
  curves = [Curve("nano", ANCHOR.bpp / 2, ANCHOR.db), Curve("point", np.array([0.8]), np.array([33.0])), ANCHOR,
            Curve("WebP", ANCHOR.bpp, ANCHOR.db + 0.01, "baseline"),
            Curve("VTM", ANCHOR.bpp, ANCHOR.db + 0.02, "published")]
  figure = plots.rd_figure(curves, "title")
  heights = {text.get_text(): text.xyann[1] for text in figure.axes[0].texts}
  assert set(heights) == {"nano", "point", "JPEG", "WebP", "VTM"}
  assert min(np.diff(sorted(heights.values()))) > 0.3    # dB, of a range of about 10
  plots.save_rd_plot(tmp_path / "rd.png", curves, "title")
  plots.save_rd_plot(tmp_path / "rd.svg", curves, "title")
  assert Image.open(tmp_path / "rd.png").size[0] > 800
  assert "<text" in (tmp_path / "rd.svg").read_text()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["rd.png", "rd.svg"]


def test_equal_plots_are_equal_files(tmp_path):
  for name in "a.svg", "b.svg":
    plots.save_rd_plot(tmp_path / name, [ANCHOR], "title")
  assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_many_published_curves_are_thinned_to_the_landmarks():
  many = published_curves.select("kodak", ("all",))
  shown = plots.curves_to_plot([ANCHOR, *many])
  assert ANCHOR in shown and "MLIC++" in {curve.name for curve in shown} and len(shown) <= 1 + len(plots.LANDMARKS)
  assert plots.curves_to_plot([ANCHOR, *many[:3]]) == [ANCHOR, *many[:3]]


@pytest.mark.parametrize("places", [[5.0, 5.0, 5.0], [0.0, 0.1, 9.9, 10.0], [3.0], list(range(11)), [5.0] * 40])
def test_labels_are_spread_in_order_and_inside(places):
  moved = plots.spread(places, 1.0, 0.0, 10.0)
  gap = min(1.0, 10 / max(len(places) - 1, 1))
  assert np.all(np.diff(moved) > gap - 1e-9) and min(moved) > -1e-9 and max(moved) < 10 + 1e-9
