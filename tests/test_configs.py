"""Every file in configs/ is a whole configuration, and says what the papers say."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.mlic_plus_plus import LAMBDAS
from mlic_jax.config import VARIANTS, CodecConfig
from mlic_jax.model import contexts
from mlic_jax.training.config_schema import check_fields

ROOT = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.py"))
ABLATIONS = [file for file in FILES if "ablations/" in file]
ABLATIONS_V2 = [f"configs/ablations_v2/{row}.py" for row in (
    "row0_contexts", "row1_hyper_values", "row2_reweighting", "row3_rotary", "row4_token_mixing",
    "row5_selection")]


def config_of(file: str, *argument: str):
  return importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(*argument)


def differing_fields(before: CodecConfig, after: CodecConfig) -> list[str]:
  return [f.name for f in dataclasses.fields(CodecConfig) if getattr(before, f.name) != getattr(after, f.name)]


@pytest.mark.parametrize("file", FILES)
def test_training_accepts_every_config_and_its_contexts_exist(file):
  model = check_fields(config_of(file))
  assert set(model.contexts) <= set(contexts.available())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_config_of_a_variant_is_its_architecture_for_every_lambda_of_the_papers(name):
  file = f"configs/{name}.py"
  for distortion, lambdas in LAMBDAS.items():
    for i, lmbda in enumerate(lambdas):
      config = config_of(file, f"{distortion}:{i}")
      assert (config.distortion, config.lmbda) == (distortion, lmbda)
      assert check_fields(config) == VARIANTS[name]
      assert set(config.model) == {f.name for f in dataclasses.fields(CodecConfig)}  # no default hides elsewhere
  assert (config_of(file).distortion, config_of(file).lmbda) == ("mse", 0.0130)


def test_the_variants_are_those_of_the_papers():
  sizes = {name: (c.N, c.M, c.num_slices) for name, c in VARIANTS.items()}
  assert sizes == dict(mlic=(192, 192, 6), mlic_plus=(192, 320, 10), mlic_plus_plus=(192, 320, 10),
                       mlic_v2=(192, 320, 10))
  assert "global_inter_softmax" not in VARIANTS["mlic"].contexts
  assert differing_fields(VARIANTS["mlic_plus"], VARIANTS["mlic_plus_plus"]) == ["contexts"]
  assert differing_fields(VARIANTS["mlic_plus_plus"], VARIANTS["mlic_v2"]) == ["transforms", "contexts", "options"]


@pytest.mark.parametrize("name", ["elic", "hpcm"])
def test_other_transforms_change_nothing_else_in_mlic_plus_plus(name):
  parent, joined = (config_of(f"configs/{file}.py", "mse:1") for file in ("mlic_plus_plus", f"mlic_plus_plus_{name}"))
  assert joined.model.transforms == name
  joined.model.transforms = "cheng2020"
  assert check_fields(joined) == check_fields(parent)
  assert joined.to_dict() | dict(model=None) == parent.to_dict() | dict(model=None)


def test_every_row_of_the_ablation_adds_one_thing_to_the_row_above_and_the_last_is_nano_at_one_rate():
  rows = [CodecConfig.from_dict(config_of(file).model.to_dict()) for file in ABLATIONS]
  assert rows[0].contexts == () and rows[0].lrp_widths == ()
  for above, row in zip(rows, rows[1:]):
    assert len(differing_fields(above, row)) == 1
    added = set(row.contexts) - set(above.contexts)
    assert set(above.contexts) <= set(row.contexts) and len(added) + (row.lrp_widths != above.lrp_widths) == 1
  nano = CodecConfig.from_dict(config_of("configs/nano.py").model.to_dict())
  assert differing_fields(rows[-1], nano) == ["num_rates"]
  training = [config_of(file).to_dict() | dict(model=None) for file in ABLATIONS]
  assert all(fields == training[0] for fields in training)


def test_every_row_of_the_ablation_of_mlic_v2_adds_one_setting_to_the_row_above_from_nano_at_one_rate():
  rows = [CodecConfig.from_dict(config_of(file).model.to_dict()) for file in ABLATIONS_V2]
  assert rows[0] == CodecConfig.from_dict(config_of(ABLATIONS[-1]).model.to_dict())
  assert differing_fields(rows[0], rows[1]) == ["contexts", "options"]
  assert set(rows[1].contexts) - set(rows[0].contexts) == {"global_intra_hyper"}
  for above, row in zip(rows[1:], rows[2:]):
    assert differing_fields(above, row) == ["options"] and len(set(row.options) - set(above.options)) == 1
  other = CodecConfig.from_dict(config_of("configs/ablations_v2/row1_anchor_values.py").model.to_dict())
  assert differing_fields(rows[1], other) == ["options"] and dict(other.options) == {"hyper_values": False}
  training = [config_of(file).to_dict() | dict(model=None) for file in ABLATIONS_V2]
  assert training[-1].pop("trained") == "all"  # of models with a map
  assert all(fields == training[0] for fields in training)


def test_the_second_phase_of_mlic_v2_trains_a_map_and_nothing_else_of_the_same_codec():
  first, second = config_of("configs/mlic_v2.py", "mse:1"), config_of("configs/mlic_v2_selection.py", "mse:1")
  assert second.trained == "map" and second.lmbda == first.lmbda
  del second.model.options["selection_widths"]
  assert check_fields(first) == CodecConfig.from_dict(second.model.to_dict())


@pytest.mark.parametrize("text", ["docs/research.md", ABLATIONS_V2[0]])
def test_the_command_of_the_ablation_of_mlic_v2_names_all_of_its_rows(text):
  named = {f"configs/{row}.py" for row in re.findall(r"ablations_v2/row\w+", (ROOT / text).read_text())}
  assert named == {file for file in FILES if "ablations_v2/" in file}


def test_the_comparison_of_optimisers_differs_in_the_optimiser_alone_and_its_command_names_all_rows():
  files = {file for file in FILES if "optimizers/" in file}
  nano, of_muon = (config_of(f"configs/{name}.py").to_dict() for name in ("nano", "optimizers/muon"))
  same = {"muon_learning_rate", "learning_rate", "optimizer", "schedule", "model", "lmbdas", "grad_clip"}
  assert {field: nano[field] for field in same} == {field: of_muon[field] for field in same}
  rows = {file: config_of(file).to_dict() for file in files}
  for fields in rows.values():
    differing = {field for field in fields.keys() | of_muon.keys() if fields.get(field) != of_muon.get(field)}
    assert differing <= {"optimizer", "learning_rate", "muon_learning_rate", "schedule", "decay_start"}
  for text in ("docs/training.md", "configs/optimizers/muon.py"):
    assert {f"configs/{row}.py" for row in re.findall(r"optimizers/\w+", (ROOT / text).read_text())} == files


@pytest.mark.parametrize("arguments, message", [
    (["--config=configs/mlic.py:mse:6"], "no objective 'mse:6'; wanted mse:0 to mse:5 or ms_ssim:0 to ms_ssim:5"),
    (["--config", "configs/mlic_plus.py:psnr:1"], "no objective 'psnr:1'"),
    (["--config=configs/mlic_plus_plus.py:mse:3", "--config.lmda=1"], "field 'lmda'; the nearest known one is 'lmbda'"),
    (["--config=configs/nano.py:mse:3"], "configs/nano.py takes no argument, 'mse:3' came"),
    (["--config=configs/mlicc.py:mse:3"], "configs/mlicc.py:mse:3: no such configuration file")])
def test_an_objective_or_a_field_that_does_not_exist_is_refused_in_one_line(tmp_path, arguments, message):
  command = [sys.executable, "train.py", *arguments, f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, JAX_PLATFORMS="cpu"))
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and done.stderr.startswith("train.py: ") and message in done.stderr
  assert not (tmp_path / "run").exists()
