"""Tests that plots do not depend on the environment and the user settings of matplotlib."""
import os
from pathlib import Path

import pytest
from helpers.forked_programs import Program, run_forks

ROOT = Path(__file__).parents[2]

SHARED = """
import jax, sys, xml.etree.ElementTree
import mlic_jax.coding.codec, mlic_jax.evaluation.dataset, mlic_jax.evaluation.runner, rich.progress, scipy.optimize
assert "matplotlib" not in sys.modules  # which reads the settings when it is imported
"""
PLOT = """
import os, sys
import numpy as np
from mlic_jax.console import prepare
os.chdir(sys.argv[1])
prepare()
from mlic_jax.evaluation import bd_rate, plots, report_images, session
curve = bd_rate.Curve("a $x_1$", np.array([0.1, 0.2, 0.4]), np.array([30.0, 31.0, 32.0]))
other = curve._replace(name="b", kind="baseline", db=curve.db - 0.5)
assert bd_rate.bd_rate(curve, other)["percent"] < 0
for extension in "png", "svg":
  plots.save_rd_plot(f"plot.{extension}", [curve, other], "title")
"""
EVALUATE = """
import os, sys
os.chdir(sys.argv.pop(1))
from mlic_jax.__main__ import main
sys.exit(main())
"""
BACKENDS = "module://matplotlib_inline.backend_inline", "module://nowhere", "TkAgg", "odd"
SETTINGS = {
    "readable": "text.usetex: True\nfont.family: serif\naxes.facecolor: black\nsavefig.dpi: 30\nfigure.dpi: 40\n",
    "unreadable": "backend: module://matplotlib_inline.backend_inline\nno such setting\nfont.size: many\n"
                  "lines.linewidth: 9\n"}
PLACES = "folder", "variable"
# A program for each case: a backend of the environment, and a file of settings. MPLBACKEND takes the place of a backend
# in a file, so a file that names one is read without it, too.
CASES = {"usual": (None, None, None), "inline": (BACKENDS[0], "readable", "folder"),
         "nowhere": (BACKENDS[1], "readable", "variable"), "TkAgg": (BACKENDS[2], "unreadable", "variable"),
         "odd": (BACKENDS[3], None, None), "of_a_file": (None, "unreadable", "folder")}


@pytest.fixture(scope="module")
def plotted(tmp_path_factory):
  """{case: (its folder, the finished program)}; every program imports matplotlib for itself.

  The program of "not_text" is an evaluation, in a folder with settings that are not text."""
  folders, environments = {}, {}
  for case, (backend, settings, place) in CASES.items():
    folders[case], environments[case] = tmp_path_factory.mktemp("plots"), {}
    if backend:
      environments[case]["MPLBACKEND"] = backend
    if settings:
      file = (folders[case] if place == "folder" else tmp_path_factory.mktemp("settings")) / "matplotlibrc"
      file.write_text(SETTINGS[settings])
      if place == "variable":
        environments[case]["MATPLOTLIBRC"] = str(file)
  programs = [Program(PLOT, [str(folders[case])], environments[case]) for case in folders]
  folders["not_text"] = tmp_path_factory.mktemp("plots")
  (folders["not_text"] / "matplotlibrc").write_bytes(b"font.family: \xff\xfe\n")
  programs.append(Program(EVALUATE, [str(folders["not_text"]), "eval", "--ckpt", "x"]))
  plain = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "MATPLOTLIB"))}
  found = run_forks(SHARED, programs, ROOT, environment=plain)
  return dict(zip(folders, zip(folders.values(), found), strict=True))


def plots(plotted, case) -> tuple[bytes, bytes]:
  """Returns the PNG and SVG of a case, whose program prints nothing."""
  folder, done = plotted[case]
  assert done == (0, b"", ""), done.stderr
  return (folder / "plot.png").read_bytes(), (folder / "plot.svg").read_bytes()


@pytest.mark.parametrize("case", [case for case, (backend, *_) in CASES.items() if backend])
def test_a_backend_of_the_environment_changes_nothing(plotted, case):
  assert plots(plotted, case) == plots(plotted, "usual")


@pytest.mark.parametrize("case", [case for case, (_, settings, _) in CASES.items() if settings])
def test_a_settings_file_of_the_user_changes_nothing(plotted, case):
  assert plots(plotted, case) == plots(plotted, "usual")


def test_a_settings_file_that_is_not_text_is_one_line(plotted):
  _, done = plotted["not_text"]
  assert done.status == 2 and done.stderr.count("\n") == 1 and "matplotlibrc" in done.stderr


def test_other_code_keeps_its_settings():
  from mlic_jax.evaluation.matplotlib_settings import default_settings, matplotlib
  with matplotlib.rc_context({"lines.linewidth": 7.0}):
    with default_settings(**{"font.size": 3.0}):
      assert (matplotlib.rcParams["lines.linewidth"], matplotlib.rcParams["font.size"]) == (1.5, 3.0)
    assert matplotlib.rcParams["lines.linewidth"] == 7.0
