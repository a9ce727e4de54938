"""Topologies of NVIDIA GPUs: the compiler in the CUDA plugin of JAX needs neither a GPU nor a driver.

    devices = topology_devices("h100:8")                    eight devices, to lower programs for
    found, hlo = measured(lowered, memory_of("h100:8"))     DoesNotFit if the program exceeds the memory of a card

The compiler needs a description of the card (xla/stream_executor/device_description.proto, GpuTargetConfigProto). The
library of the plugin contains those of most data center cards; `OWN` adds others.
"""

import functools
import importlib.util
import mmap
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mlic_jax.runtime.device_topology import CHIPS, DoesNotFit, TopologyError, first_line
from mlic_jax.runtime.gpu_kernels import Kernels
from mlic_jax.runtime.hlo_analysis import collectives
from mlic_jax.runtime.hlo_instructions import flops

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
PACKAGES = "jax-cuda12-plugin nvidia-cuda-nvcc-cu12"
LIBRARY = "xla_cuda_plugin.so"
DESCRIPTION = re.compile(rb'\ngpu_device_info \{[\n\x20-\x7e]*?\ndevice_description_str: "([^"]+)"'
                         rb"[\n\x20-\x22\x24-\x7e]*")  # up to the next comment
SHORT = {"h100": "h100-80gb-hbm3", "h200": "h200-141gb-hbm3e", "a100": "a100-sxm4-80gb", "a6000": "rtx-a6000",
         "v100": "v100-sxm2-16gb", "p100": "p100-sxm2-16gb"}
GPUS = re.compile(r"([\w.\-]+):(\d+)")
# From the data sheet of the NVIDIA L4; memory from nvidia-smi.
OWN = {"l4": """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 102400
  shared_memory_per_block_optin: 101376
  threads_per_core_limit: 1536
  core_count: 58
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 300096000000
  l2_cache_size: 50331648
  clock_rate_ghz: 2.04
  device_memory_size: 24152899584
  cuda_compute_capability { major: 8 minor: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
device_description_str: "NVIDIA L4"
"""}
# Dense bfloat16 rates from data sheets, for cards without rates of matrix units in their description (not V100, P100).
PEAK_FLOPS = {"l4": 121e12, "rtx-a6000": 154.8e12}
BFLOAT16 = 16  # PrimitiveType in xla_data.proto, the key of the rates of a card
# Environment variable of JAX with the share of memory that it reserves for programs, and its default.
MEMORY_FRACTION = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")


class Card(NamedTuple):
  """Memory and peak rates of one GPU, which bound a program."""
  name: str
  description: str           # GpuTargetConfigProto as text
  memory: int                # bytes
  bandwidth: float           # bytes per second of its memory
  peak_flops: float | None   # dense bfloat16 operations per second; None if unknown


class Footprint(NamedTuple):
  """Memory and cost of a program on each GPU, as the compiler reports them; in bytes unless noted."""
  arguments: int
  temporaries: int
  output: int
  aliased: int      # output in the memory of arguments
  peak: int         # without the workspaces of cuDNN, which are chosen at run time
  flops: int        # operations of matrix products and convolutions, with all iterations of loops
  kernels: Kernels
  collectives: dict[str, tuple[int, int]]  # {kind: (count, bytes)}

  @classmethod
  def of(cls, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> "Footprint":
    memory: Any = compiled.memory_analysis()  # the compiler for GPUs has it
    text = compiled.as_text() or ""
    return cls(memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes,
               memory.alias_size_in_bytes, memory.peak_memory_in_bytes, flops(lowered.as_text("hlo")),
               Kernels.of(text), collectives(text))


def is_gpu(topology: str) -> bool:
  """Return whether a topology is one of GPUs, such as h100:8, and not of TPUs, such as v5e:2x4."""
  found = GPUS.fullmatch(topology)
  return found is not None and found[1] not in CHIPS


def is_installed() -> bool:
  """Return whether the compiler for GPUs and its assembler are installed."""
  return _plugin() is not None and _has_ptxas()


def card_of(topology: str) -> Card:
  """Return the card of a topology such as h100:8. TopologyError for an unknown card."""
  kind = topology.partition(":")[0]
  known = descriptions()
  name = SHORT.get(kind, kind)
  if name not in known:
    short = [*(each for each, full in SHORT.items() if full in known), *OWN]
    others = sorted(known.keys() - set(SHORT.values()) - OWN.keys())
    raise TopologyError(f"--topology={topology}: no card {kind!r}; wanted one of {', '.join(sorted(short) + others)}, "
                        "as in h100:8")
  text = known[name]
  number = lambda field: float(re.findall(rf"\b{field}: ([\d.]+)", text)[0])
  return Card(name, text, int(number("device_memory_size")), number("memory_bandwidth"),
              _peak_flops(text, number("core_count")) or PEAK_FLOPS.get(name))


def topology_devices(topology: str) -> list[jax.Device]:
  """Return the devices of a topology such as h100:8 in one machine. Call it before JAX initializes its backends.

  TopologyError if the compiler is not installed, or does not know the card."""
  found = GPUS.fullmatch(topology)
  if found is None or not int(found[2]):
    raise TopologyError(f"--topology={topology}; wanted a card and how many of them, as in h100:8")
  if not is_installed():
    raise TopologyError(f"the compiler for NVIDIA GPUs is not installed: pip install {PACKAGES} brings it to any Linux "
                        "on x86-64 with Python 3.12 or newer; no GPU is needed")
  card = card_of(topology)
  from jax.experimental import topologies
  jax.config.update("jax_platforms", "cpu")  # otherwise JAX looks for GPUs, as the plugin is installed
  try:
    described = topologies.get_topology_desc("", platform="cuda", topology=f"1x1x{found[2]}",
                                             target_config=card.description)
  except Exception as error:  # errors of the plugin with long messages
    raise TopologyError(f"--topology={topology}: {first_line(error)}") from error
  return list(described.devices)


def memory_of(topology: str) -> float:
  """Return the bytes of memory that a program can use: the share that JAX reserves."""
  return float(os.environ.get(*MEMORY_FRACTION)) * card_of(topology).memory


def measured(lowered: jax.stages.Lowered, room: float) -> tuple[Footprint, str]:
  """Return the footprint and the HLO of a compiled program. DoesNotFit if it needs more than `room` bytes.

  The compiler itself does not check the size."""
  program = lowered.compile()
  found = Footprint.of(lowered, program)
  if found.peak > room:
    raise DoesNotFit(found.peak, room)
  return found, program.as_text() or ""


@functools.cache
def descriptions() -> dict[str, str]:
  """Return {name: description} of all known NVIDIA cards."""
  found, plugin = dict(OWN), _plugin()
  if plugin is not None and plugin.exists():
    with open(plugin, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
      for each in DESCRIPTION.finditer(library):
        text = each[0].decode()
        if 'platform_name: "CUDA"' in text:
          found[_short(each[1].decode())] = text
  return found


def _short(name: str) -> str:
  """Return a100-sxm4-80gb for NVIDIA A100-SXM4-80GB."""
  return re.sub(r"^(nvidia|tesla) ", "", name.lower()).replace(" ", "-")


def _peak_flops(text: str, cores: float) -> float | None:
  units = text.partition("matrix_unit_description")[2]
  rate = re.search(rf"key: {BFLOAT16}\s+value \{{\s+clock_rate_ghz: ([\d.]+)\s+units_per_core: (\d+)\s+ops_per_clock: "
                   r"(\d+)", units)
  return 2e9 * cores * float(rate[1]) * int(rate[2]) * int(rate[3]) if rate else None


def _plugin() -> Path | None:
  """Return the library of the CUDA plugin of JAX; None if it is not installed."""
  for name in PLUGINS:
    if importlib.util.find_spec("jax_plugins") and (spec := importlib.util.find_spec(name)) and spec.origin:
      return Path(spec.origin).parent / LIBRARY
  return None


def _has_ptxas() -> bool:
  """Return whether the assembler of the compiler is installed."""
  return (shutil.which("ptxas") is not None or Path("/usr/local/cuda/bin/ptxas").exists() or
          importlib.util.find_spec("nvidia") is not None and any(
              importlib.util.find_spec(each) is not None for each in ("nvidia.cuda_nvcc", "nvidia.cu13")))
