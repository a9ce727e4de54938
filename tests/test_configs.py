"""Tests of all files in configs/: complete configurations with the values of the papers."""

import dataclasses
import json
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from helpers.paper_models import PAPER_MODELS

from configs.mlic_plus_plus import LAMBDAS
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.config import CodecConfig
from mlic_jax.model import contexts
from mlic_jax.training import config_registry
from mlic_jax.training.checkpoints import config_to_dict, flatten
from mlic_jax.training.config_schema import check_fields, load_config

ROOT = Path(__file__).parent.parent
NAMES = config_registry.names()
ABLATIONS = [name for name in NAMES if name.startswith("ablations/")]
ABLATIONS_V2 = [f"ablations_v2/{row}" for row in (
    "00_contexts", "01_hyper_values", "02_reweighting", "03_rotary", "04_token_mixing", "05_selection")]


def differing_fields(before: CodecConfig, after: CodecConfig) -> list[str]:
  return [f.name for f in dataclasses.fields(CodecConfig) if getattr(before, f.name) != getattr(after, f.name)]


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_config_has_changed_since_the_published_models(name):
  """The recorded values are those from before the configurations got a common parent; scan_unroll was in the model, and
  the Gaussian was the only distribution."""
  recorded = json.loads((ROOT / "tests/fixtures/config_values.json").read_text())
  values = flatten(config_to_dict(load_config(name)))
  default = {"model.distribution": "gaussian"}
  assert default | values == default | recorded["all"] | recorded[name]


def test_the_models_of_the_papers_do_not_import_nano():
  """Editing nano must not change MLIC++."""
  code = "; ".join(["import sys", *(f"import configs.{name}" for name in NAMES if name.startswith("mlic")),
                    "assert 'configs.nano' not in sys.modules"])
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_training_accepts_every_config_and_its_contexts_exist(name):
  model = check_fields(load_config(name))
  assert set(model.contexts) <= set(contexts.available())


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_a_paper_model_has_one_architecture_for_every_lambda_of_the_papers(name):
  for distortion, lambdas in LAMBDAS.items():
    for i, lmbda in enumerate(lambdas):
      config = load_config(f"{name}:{distortion}:{i}")
      assert (config.distortion, config.lmbda) == (distortion, lmbda)
      assert check_fields(config) == PAPER_MODELS[name]
      assert set(config.model) == {f.name for f in dataclasses.fields(CodecConfig)}  # no default hides elsewhere
  assert (load_config(name).distortion, load_config(name).lmbda) == ("mse", 0.0130)


def test_the_architectures_are_those_of_the_papers():
  sizes = {name: (c.N, c.M, c.num_slices) for name, c in PAPER_MODELS.items()}
  assert sizes == dict(mlic=(192, 192, 6), mlic_plus=(192, 320, 10), mlic_plus_plus=(192, 320, 10),
                       mlic_v2=(192, 320, 10))
  assert "global_inter_softmax" not in PAPER_MODELS["mlic"].contexts
  assert differing_fields(PAPER_MODELS["mlic_plus"], PAPER_MODELS["mlic_plus_plus"]) == ["contexts"]
  of_v2 = differing_fields(PAPER_MODELS["mlic_plus_plus"], PAPER_MODELS["mlic_v2"])
  assert of_v2 == ["transforms", "contexts", "options"]


@pytest.mark.parametrize("name", ["elic", "hpcm"])
def test_other_transforms_change_nothing_else_in_mlic_plus_plus(name):
  parent, joined = (load_config(f"{each}:mse:1") for each in ("mlic_plus_plus", f"mlic_plus_plus_{name}"))
  assert joined.model.transforms == name
  joined.model.transforms = "cheng2020"
  assert check_fields(joined) == check_fields(parent)
  assert joined.to_dict() | dict(model=None) == parent.to_dict() | dict(model=None)


def test_every_row_of_the_ablation_adds_one_thing_to_the_row_above_and_the_last_is_nano_at_one_rate():
  rows = [CodecConfig.from_dict(load_config(name).model.to_dict()) for name in ABLATIONS]
  assert rows[0].contexts == () and rows[0].lrp_widths == ()
  for above, row in zip(rows, rows[1:]):
    assert len(differing_fields(above, row)) == 1
    added = set(row.contexts) - set(above.contexts)
    assert set(above.contexts) <= set(row.contexts) and len(added) + (row.lrp_widths != above.lrp_widths) == 1
  nano = CodecConfig.from_dict(load_config("nano").model.to_dict())
  assert differing_fields(rows[-1], nano) == ["num_rates"]
  training = [load_config(name).to_dict() | dict(model=None) for name in ABLATIONS]
  assert all(fields == training[0] for fields in training)


def test_every_row_of_the_ablation_of_mlic_v2_adds_one_setting_to_the_row_above_from_nano_at_one_rate():
  rows = [CodecConfig.from_dict(load_config(name).model.to_dict()) for name in ABLATIONS_V2]
  assert rows[0] == CodecConfig.from_dict(load_config(ABLATIONS[-1]).model.to_dict())
  assert differing_fields(rows[0], rows[1]) == ["contexts", "options"]
  assert set(rows[1].contexts) - set(rows[0].contexts) == {"global_intra_hyper"}
  for above, row in zip(rows[1:], rows[2:]):
    assert differing_fields(above, row) == ["options"] and len(set(row.options) - set(above.options)) == 1
  other = CodecConfig.from_dict(load_config("ablations_v2/01_anchor_values").model.to_dict())
  assert differing_fields(rows[1], other) == ["options"] and dict(other.options) == {"hyper_values": False}
  training = [load_config(name).to_dict() | dict(model=None) for name in ABLATIONS_V2]
  assert training[-1].pop("trained") == "all"  # of models with a map
  assert all(fields == training[0] for fields in training)


def test_the_second_phase_of_mlic_v2_trains_a_map_and_nothing_else_of_the_same_codec():
  first, second = load_config("mlic_v2:mse:1"), load_config("mlic_v2_selection:mse:1")
  assert second.trained == "map" and second.lmbda == first.lmbda
  fields = second.model.to_dict()
  del fields["options"]["selection_widths"]
  assert check_fields(first) == CodecConfig.from_dict(fields)


@pytest.mark.parametrize("text", ["docs/benchmarks/contexts.md", "configs/ablations_v2/common.py"])
def test_the_command_of_the_ablation_of_mlic_v2_names_all_of_its_rows(text):
  named = set(re.findall(r"ablations_v2/\d\d_\w+", (ROOT / text).read_text()))
  assert named == {name for name in NAMES if name.startswith("ablations_v2/")}


def test_a_row_on_latents_differs_from_nano_in_contexts_or_distribution_and_the_commands_name_all_rows():
  names = {name for name in NAMES if name.startswith("ablations_latents/")}
  rows = {name: CodecConfig.from_dict(load_config(name).model.to_dict()) for name in names}
  nano = CodecConfig.from_dict(load_config("nano").model.to_dict())
  assert rows["ablations_latents/nano"] == nano
  for name in names - {"ablations_latents/nano"}:
    assert set(differing_fields(nano, rows[name])) in ({"contexts"}, {"distribution"}, {"distribution", "options"})
  for text in ("docs/benchmarks/contexts.md", "configs/ablations_latents/common.py"):
    named = set(re.findall(r"ablations_latents/[a-z_]+", (ROOT / text).read_text()))
    assert named - {"ablations_latents/common"} == names


def test_the_comparison_of_optimizers_differs_in_the_optimizer_alone_and_its_command_names_all_rows():
  names = {name for name in NAMES if name.startswith("optimizers/")}
  nano, of_muon = (load_config(name).to_dict() for name in ("nano", "optimizers/muon"))
  same = {"muon_learning_rate", "learning_rate", "optimizer", "schedule", "model", "lmbdas", "grad_clip"}
  assert {field: nano[field] for field in same} == {field: of_muon[field] for field in same}
  for name in names:
    fields = load_config(name).to_dict()
    differing = {field for field in fields.keys() | of_muon.keys() if fields.get(field) != of_muon.get(field)}
    assert differing <= {"optimizer", "learning_rate", "muon_learning_rate", "schedule", "decay_start"}
  for text in ("docs/benchmarks/training.md", "configs/optimizers/common.py"):
    assert set(re.findall(r"optimizers/\w+", (ROOT / text).read_text())) == names


@pytest.mark.parametrize("arguments, message", [
    (["--config=configs/mlic.py:mse:6"], "no objective 'mse:6'; wanted mse:0 to mse:5 or ms_ssim:0 to ms_ssim:5"),
    (["--config", "configs/mlic_plus.py:psnr:1"], "no objective 'psnr:1'"),
    (["--config=configs/mlic_plus_plus.py:mse:3", "--config.lmda=1"], "field 'lmda'; the nearest known one is 'lmbda'"),
    (["--config=configs/nano.py:mse:3"], "configs/nano.py takes no argument; wanted the name without ':mse:3'"),
    (["--config=configs/mlicc.py:mse:3"], "configs/mlicc.py:mse:3: no such config file")])
def test_an_objective_or_a_field_that_does_not_exist_is_refused_in_one_line(
    tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(ROOT)
  assert main_of_one_command("train", "train.py", [*arguments, f"--workdir={tmp_path / 'run'}"]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and err.startswith("train.py: ") and message in err
  assert not (tmp_path / "run").exists()


def test_configs_are_read_while_another_thread_imports():
  done = threading.Event()

  def import_modules():
    while not done.is_set():
      for i in range(50):
        sys.modules[f"imported_{i}"] = types.ModuleType(f"imported_{i}")
      for i in range(50):
        del sys.modules[f"imported_{i}"]

  thread = threading.Thread(target=import_modules)
  thread.start()
  try:
    for _ in range(300):
      with config_registry.imports_from_project():
        pass
  finally:
    done.set()
    thread.join()
