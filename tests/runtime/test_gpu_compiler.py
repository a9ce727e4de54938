"""Tests that the compiler for NVIDIA GPUs compiles the programs of this project, at small sizes and without a GPU.

`make test-gpu` has the environment for it: the newest jax with its plugin for CUDA, on CPU."""
import re

import jax
import pytest
from helpers.small_configs import SMALL_CONFIGS

from mlic_jax.__main__ import main
from mlic_jax.coding.compile_specs import DECODER, ENCODER, codec_programs
from mlic_jax.runtime import gpu_topology, hlo_analysis
from mlic_jax.training import pmap_programs
from mlic_jax.training.config_schema import check_fields

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_topology.is_installed(),
                                                  reason="the compiler for GPUs is missing (make test-gpu)")]
CARDS = "h100:8"


@pytest.fixture(scope="module")
def gpus():
  return gpu_topology.topology_devices(CARDS)


@pytest.fixture(scope="module", params=[(name, count) for name in SMALL_CONFIGS for count in (1, 8)],
                ids=lambda param: f"{param[0]}-{param[1]}")
def step(request, gpus):
  """(number of cards, the footprint of the training step, its text)"""
  name, count = request.param
  config = SMALL_CONFIGS[name]()
  config.data_dir, config.crop_size, config.batch_size = "photographs", 64, count
  train_step, arguments = pmap_programs.training_program(config, check_fields(config), gpus[:count])
  lowered = train_step.lower(*arguments)
  compiled = lowered.compile()
  return count, gpu_topology.Footprint.of(lowered, compiled), compiled.as_text()


def test_a_training_step_compiles_and_its_state_takes_the_memory_of_the_old_one(step):
  _, footprint, _ = step
  assert 0 < footprint.aliased <= footprint.output
  assert footprint.aliased > 0.9 * footprint.arguments   # what is not is the batch, and a vector of figures
  whole = footprint.arguments + footprint.temporaries + footprint.output - footprint.aliased
  assert footprint.arguments < footprint.peak <= whole < gpu_topology.memory_of(CARDS)


def test_several_cards_reduce_and_one_does_not(step):
  count, footprint, _ = step
  assert set(footprint.collectives) == ({"all-reduce"} if count > 1 else set())


def test_nothing_is_computed_in_64_bits_and_the_host_is_not_called(step):
  _, _, text = step
  assert not re.search(r"\bf64\[", text) and "callback" not in text and not re.search(r"\b(infeed|outfeed)\(", text)


def test_convolutions_are_those_of_cudnn(step):
  _, footprint, text = step
  assert " convolution(" not in text
  assert {"BackwardFilter", "BiasActivationForward"} <= footprint.kernels.convolutions.keys()
  assert "window={size=1x3 " not in text  # Winograd's, on CPU


def test_slices_are_a_loop(step):
  _, footprint, text = step
  assert 2 in hlo_analysis.runs(text).values() and " conditional(" not in text
  assert 0 < footprint.kernels.in_loops < footprint.kernels.launches


def test_operations_and_bytes_are_counted(step):
  _, footprint, _ = step
  assert footprint.flops > 1e6 and footprint.kernels.accessed > footprint.arguments


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_the_functions_of_a_codec_compile(name, gpus):
  on_it = jax.sharding.SingleDeviceSharding(gpus[0])
  place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_it)
  config = SMALL_CONFIGS[name]()
  config.data_dir = "photographs"
  programs = codec_programs(check_fields(config), 64, 64)
  for each in sorted({*ENCODER, *DECODER}):
    function, arguments = programs[each]
    found, _ = gpu_topology.measured(jax.jit(function).lower(*jax.tree.map(place, arguments)),
                                     gpu_topology.memory_of(CARDS))
    assert found.kernels.convolutions and not found.collectives, each


@pytest.mark.parametrize("name", ["h100:1", "a100:4", "l4:8", "h200:8"])
def test_cards_are_counted_and_described(name):
  devices, card = gpu_topology.topology_devices(name), gpu_topology.card_of(name)
  assert len(devices) == int(name.partition(":")[2]) and card.peak_flops > 1e14
  assert gpu_topology.memory_of(name) == 0.75 * card.memory


def test_an_unknown_card_is_one_line_with_the_known_ones(capsys):
  assert main(["estimate", "--config", "nano", "--topology", "h99:8"]) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: --topology=h99:8: no card 'h99'; wanted one of a100, ") and said.count("\n") == 1
  assert "h100, " in said and "l4, " in said and said.endswith("as in h100:8\n")


@pytest.fixture
def small_file(tmp_path):
  (tmp_path / "small.py").write_text(
      "from configs import nano\ndef get_config():\n  c = nano.get_config()\n"
      "  c.model = dict(N=8, M=16, num_slices=2, transforms='cheng2020', widths=(8, 8, 8), contexts=(),\n"
      "                 entropy_widths=(8,), lrp_widths=(), num_rates=6)\n  return c\n")
  return ["estimate", "--config", str(tmp_path / "small.py")]


def test_the_command_reports_what_a_codec_takes(small_file, capsys):
  assert main([*small_file, "--topology", "h100:1", "--what", "decode", "--height", "64", "--width", "64"]) == 0
  said = capsys.readouterr().out
  for name in ("start", "nonanchors", "advance", "finish"):
    assert f"{name}, on each GPU\n  peak memory" in said
  assert said.count("without the workspaces of cuDNN") == said.count("BiasActivationForward, by cuDNN") == 4
  assert len(re.findall(r"roofline time +\d+\.\d+ ms", said)) == 4


def test_what_does_not_fit_is_one_line(small_file, capsys):
  assert main([*small_file, "--topology", "l4:1", "--what", "evaluate", "--batch-size", "8000"]) == 2
  said = capsys.readouterr().err
  assert re.search(r"^error: it takes \d+\.\d+ GiB on a chip, where there are 16\.87 GiB$", said, re.M)
