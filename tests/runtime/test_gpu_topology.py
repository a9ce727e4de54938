"""Tests of GPU topologies without their compiler, and of the descriptions of cards."""
import pytest

from mlic_jax.__main__ import main
from mlic_jax.runtime import gpu_topology
from mlic_jax.runtime.device_topology import TopologyError


@pytest.mark.parametrize("name, is_gpu", [("h100:8", True), ("l4:1", True), ("rtx-a6000:2", True), ("v5e:2x4", False),
                                          ("v4:2x2x1", False), ("v5e:8", False), ("h100", False)])
def test_a_topology_of_gpus_is_a_card_and_a_number(name, is_gpu):
  assert gpu_topology.is_gpu(name) == is_gpu


def test_a_missing_compiler_is_one_line_that_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr(gpu_topology, "_plugin", lambda: None)
  assert main(["estimate", "--config", "nano", "--topology", "h100:8"]) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: the compiler for NVIDIA GPUs is not installed: pip install jax-cuda12-plugin ")
  assert said.count("\n") == 1


def test_the_descriptions_of_cards_are_found_in_the_library_of_the_plugin(monkeypatch, tmp_path):
  rates = "matrix_unit_description {\n rate_infos {\n key: 16\n value {\n clock_rate_ghz: 1.5\n units_per_core: 4\n " \
          "ops_per_clock: 1024\n }\n }\n}\n"
  text = lambda name, platform: (f"\ngpu_device_info {{\n  core_count: 100\n  device_memory_size: 8000000000\n"
                                 f"  memory_bandwidth: 5000000000\n{rates}}}\nplatform_name: \"{platform}\"\n"
                                 f"device_description_str: \"{name}\"\n")
  library = tmp_path / "library.so"
  library.write_bytes(b"\0\1" + text("NVIDIA Q1 8GB", "CUDA").encode() + b"\0# a license" +
                      text("MI1", "ROCM").encode() + b"\0")
  monkeypatch.setattr(gpu_topology, "_plugin", lambda: library)
  gpu_topology.descriptions.cache_clear()
  try:
    card = gpu_topology.card_of("q1-8gb:4")
    assert card[2:] == (8_000_000_000, 5e9, 2 * 100 * 1.5e9 * 4 * 1024)
    assert card.description == text("NVIDIA Q1 8GB", "CUDA")
    assert gpu_topology.descriptions().keys() == {"q1-8gb", "l4"}
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert gpu_topology.memory_of("q1-8gb:1") == 4_000_000_000
    with pytest.raises(TopologyError, match="no card 'mi1'; wanted one of l4, q1-8gb, as in h100:8"):
      gpu_topology.card_of("mi1:1")
  finally:
    gpu_topology.descriptions.cache_clear()


def test_a_number_of_no_cards_is_one_line():
  with pytest.raises(TopologyError, match="^--topology=h100:0; wanted a card and how many of them, as in h100:8$"):
    gpu_topology.topology_devices("h100:0")
