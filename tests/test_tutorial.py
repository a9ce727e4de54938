"""docs/tutorial.ipynb runs from its first cell to its last."""
import json
import sys
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_tutorial_runs_and_its_context_saves_bits(monkeypatch, capsys):
  monkeypatch.setattr(sys, "path", sys.path.copy())  # to which the notebook adds a folder
  matplotlib.use("agg")
  cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
  names = {"__name__": "tutorial"}
  for number, cell in enumerate(cells):
    exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
  assert names["decoded"].shape == (256, 384, 3) and len(names["blob"]) < 12_000
  assert names["with_context"] < names["alone"]
  assert "BD-rate of nano against JPEG 4:2:0: -" in capsys.readouterr().out
