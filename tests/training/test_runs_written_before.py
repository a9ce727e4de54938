"""Tests that a run of an earlier commit continues to the same figures."""
import csv
import json

import ml_collections
import pytest
from helpers.small_training import rows
from helpers.written_before import FOLDER, unpack

from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.training import loop
from mlic_jax.training.step import state_shapes


def test_a_run_is_continued_as_the_commit_that_wrote_it_continued_it(tmp_path, monkeypatch):
  workdir = unpack("run", tmp_path)
  fields = json.loads((workdir / "config.json").read_text())
  del fields["environment"]
  c = ml_collections.ConfigDict(fields)
  c.data_dir, c.num_steps = str(FOLDER / "photographs"), 4
  # A continued run reads all of its state, so the values of a new one are not computed.
  monkeypatch.setattr(loop, "create_state", lambda config, model, optimizer, _: state_shapes(config, model, optimizer))
  loop.train_and_evaluate(c, workdir)
  now = rows(workdir / "metrics.csv")
  with (FOLDER / "continued_metrics.csv").open() as file:
    then = list(csv.DictReader(file))
  assert [row["step"] for row in now] == [row["step"] for row in then] == ["1", "2", "3", "4"]
  for name in ("loss", "bpp", "bpp_y", "bpp_z", "mse", "aux_loss", "map_loss", "grad_norm", "learning_rate"):
    # Optimization levels of the compiler differ; a wrong state, noise or batch changes the first digits.
    assert [float(row[name]) for row in now] == pytest.approx([float(row[name]) for row in then], rel=1e-3), name
  assert load_model(workdir).training["step"] == 4
