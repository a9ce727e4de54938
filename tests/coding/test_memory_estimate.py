"""Tests of the memory estimate: growth with image and model, agreement with XLA, and refusals before the work."""
import dataclasses

import jax
import numpy as np
import pytest
from conftest import TINY
from helpers.light_codec import LIGHT, light_model
from helpers.paper_models import PAPER_MODELS

from mlic_jax.coding import jit_functions as compiled_functions
from mlic_jax.coding import memory_estimate
from mlic_jax.coding.bitstream import Bitstream, write
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.memory_estimate import MemoryLimitError, bytes_needed
from mlic_jax.model import transforms
from mlic_jax.model.lazy_params import without_initializers
from mlic_jax.model.mlic import build


def test_it_grows_with_the_padded_image_and_the_widest_layer():
  assert bytes_needed(TINY, 1, 1) == bytes_needed(TINY, 64, 64)
  assert bytes_needed(TINY, 640, 64) == 10 * bytes_needed(TINY, 64, 64)
  wider = dataclasses.replace(TINY, widths=(32, 16, 16))
  assert bytes_needed(wider, 64, 64) > bytes_needed(TINY, 64, 64)
  assert bytes_needed(dataclasses.replace(TINY, widths=(16, 64, 16)), 64, 64) == bytes_needed(TINY, 64, 64)


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_a_kodak_image_takes_less_than_a_gigabyte_in_the_models_of_the_papers_and_a_half_more_in_mlic_v2(name):
  most = 1.5e9 if name == "mlic_v2" else 1e9  # its blocks are twice as wide inside
  assert 0.3e9 < bytes_needed(PAPER_MODELS[name], 512, 768) < most


@pytest.mark.parametrize("fields", [dict(transforms="cheng2020", widths=(48, 16, 16)), dict(transforms="elic", N=48),
                                    dict(transforms="hpcm", widths=(24, 16, 16)),
                                    dict(transforms="token_mixing", widths=(24, 16, 16)),
                                    dict(transforms="unshuffled", widths=(192, 64))], ids=transforms.available())
def test_it_covers_what_xla_reports_for_the_transforms_and_is_no_more_than_three_times_that(fields):
  config = dataclasses.replace(LIGHT, contexts=(), **fields)
  init = lambda x: build(config).init(jax.random.key(0), x, 2.0, method="analyze")
  with without_initializers():
    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), np.uint8)
  analyze = jax.jit(compiled_functions.analyze, static_argnums=0)
  compiled = analyze.lower(build(config), variables, image, np.float32(2)).compile()
  report = compiled.memory_analysis()
  reported = report.temp_size_in_bytes + report.output_size_in_bytes
  assert reported <= bytes_needed(config, 256, 256) <= 3 * reported


@pytest.fixture
def system(tmp_path, monkeypatch):
  """Simulates 2 GB of free memory without control groups; returns a folder for files of control groups."""
  (tmp_path / "meminfo").write_text("MemTotal:  24000000 kB\nMemAvailable:   2000000 kB\nHugePages_Total:       0\n")
  for name, path in ("MEMINFO", str(tmp_path / "meminfo")), ("PROC_CGROUP", tmp_path / "cgroup"), ("CGROUPS", tmp_path):
    monkeypatch.setattr(memory_estimate, name, path)
  return tmp_path


def group(folder, **files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / f"memory.{name}").write_text(f"{content}\n")


def test_the_limit_of_a_container_counts_less_what_is_used_and_cannot_be_given_back(system):
  (system / "cgroup").write_text("0::/\n")               # a container sees its own group as the root
  group(system, max=1000 * 2**20, current=700 * 2**20, stat=f"anon 1\ninactive_file {100 * 2**20}")
  assert memory_estimate.bytes_available() == 400 * 2**20
  group(system, max="max")
  assert memory_estimate.bytes_available() == 2_048_000_000


def test_the_tightest_limit_of_all_groups_above_counts(system):
  (system / "cgroup").write_text("0::/pod/job\n")
  group(system / "pod" / "job", max="max", current=5)
  group(system / "pod", max=600, current=200)
  assert memory_estimate.bytes_available() == 400
  group(system / "pod", max=100)
  assert memory_estimate.bytes_available() == 0


def test_limits_of_the_first_version_of_control_groups_count(system):
  (system / "cgroup").write_text("12:cpu,cpuacct:/x\n9:memory:/docker/4711\n1:name=systemd:/\n")
  group(system / "memory", limit_in_bytes=900, usage_in_bytes=300, stat="total_inactive_file 50")
  assert memory_estimate.bytes_available() == 650  # of the root, where a container's own path is not to be seen
  group(system / "memory" / "docker" / "4711", limit_in_bytes=500, usage_in_bytes=300)
  assert memory_estimate.bytes_available() == 200


def test_free_memory_is_what_the_system_says(tmp_path, monkeypatch):
  monkeypatch.setattr(memory_estimate, "PROC_CGROUP", tmp_path / "none")
  (tmp_path / "meminfo").write_text("MemTotal:  24000000 kB\nMemAvailable:   2000000 kB\nHugePages_Total:       0\n")
  monkeypatch.setattr(memory_estimate, "MEMINFO", str(tmp_path / "meminfo"))
  assert memory_estimate.bytes_available() == 2_048_000_000
  for path in ("none", "."):
    monkeypatch.setattr(memory_estimate, "MEMINFO", str(tmp_path / path))
    assert memory_estimate.bytes_available() is None


def test_an_image_that_does_not_fit_is_refused_before_any_work(photograph, monkeypatch):
  codec = Codec(light_model())
  needed = bytes_needed(codec.config, 65, 130)
  for name in ("analyze", "start"):
    monkeypatch.setattr(compiled_functions, name, lambda *args: pytest.fail("work was begun"))
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: needed - 1)
  file = write(Bitstream(codec.fingerprint, 65, 130, 2.0, 2, (b"", b"", b"")))
  for work in (lambda: codec.encode(photograph), lambda: codec.decode(file), lambda: codec.estimate(photograph)):
    with pytest.raises(MemoryLimitError, match=r"coding it with this model needs about 0.0 GB of memory; 0.0 GB are"):
      work()


def test_what_the_system_does_not_say_refuses_nothing(monkeypatch):
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: None)
  memory_estimate.check_memory(TINY, 10**6, 10**6)
