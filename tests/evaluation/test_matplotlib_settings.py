"""Tests that plots do not depend on the environment and the user settings of matplotlib."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLOT = """
import sys
import numpy as np
from mlic_jax.console import prepare
prepare()
from mlic_jax.evaluation import bd_rate, plots, report_images, session
curve = bd_rate.Curve("a $x_1$", np.array([0.1, 0.2, 0.4]), np.array([30.0, 31.0, 32.0]))
other = curve._replace(name="b", kind="baseline", db=curve.db - 0.5)
assert bd_rate.bd_rate(curve, other)["percent"] < 0
for extension in "png", "svg":
  plots.save_rd_plot(f"{sys.argv[1]}.{extension}", [curve, other], "title")
"""


def plots(folder: Path, name: str, **environment) -> tuple[bytes, bytes]:
  """Returns the PNG and SVG that a process writes to `folder` with this environment; it prints nothing."""
  usual = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "MATPLOTLIB"))}
  done = subprocess.run([sys.executable, "-c", PLOT, str(folder / name)], cwd=folder, capture_output=True, text=True,
                        env=usual | {"PYTHONPATH": str(ROOT)} | environment, timeout=300)
  assert done.returncode == 0 and not done.stderr and not done.stdout, done.stderr
  return (folder / f"{name}.png").read_bytes(), (folder / f"{name}.svg").read_bytes()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
  return plots(tmp_path_factory.mktemp("usual"), "plot")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "module://nowhere", "TkAgg", "odd"])
def test_a_backend_of_the_environment_changes_nothing(usual, tmp_path, backend):
  assert plots(tmp_path, "plot", MPLBACKEND=backend) == usual


@pytest.mark.parametrize("lines", [
    "text.usetex: True\nfont.family: serif\naxes.facecolor: black\nsavefig.dpi: 30\nfigure.dpi: 40\n",
    "backend: module://matplotlib_inline.backend_inline\nno such setting\nfont.size: many\nlines.linewidth: 9\n"])
@pytest.mark.parametrize("place", ["folder", "variable"])
def test_a_settings_file_of_the_user_changes_nothing(usual, tmp_path, lines, place):
  (tmp_path / "other").mkdir()
  file = (tmp_path if place == "folder" else tmp_path / "other") / "matplotlibrc"
  file.write_text(lines)
  assert plots(tmp_path, "plot", **({"MATPLOTLIBRC": str(file)} if place == "variable" else {})) == usual


def test_a_settings_file_that_is_not_text_is_one_line(tmp_path):
  (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\xfe\n")
  done = subprocess.run([sys.executable, "-m", "mlic_jax", "eval", "--ckpt", "x"], cwd=tmp_path, capture_output=True,
                        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "matplotlibrc" in done.stderr


def test_other_code_keeps_its_settings():
  from mlic_jax.evaluation.matplotlib_settings import default_settings, matplotlib
  with matplotlib.rc_context({"lines.linewidth": 7.0}):
    with default_settings(**{"font.size": 3.0}):
      assert (matplotlib.rcParams["lines.linewidth"], matplotlib.rcParams["font.size"]) == (1.5, 3.0)
    assert matplotlib.rcParams["lines.linewidth"] == 7.0
