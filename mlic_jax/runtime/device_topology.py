"""Topologies of TPUs: libtpu compiles for them on any x86-64 Linux, and reports memory and time of a program.

    devices = topology_devices("v5e:2x4")                   eight devices, to lower programs for
    footprint = Footprint.of(compiled(lowered))             DoesNotFit if the program exceeds the memory of a chip
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mlic_jax.errors import ConfigError
from mlic_jax.runtime import hlo_analysis

OLDEST_JAX = (0, 8)  # the first version whose jax.pmap accepts devices of a topology
# Settings that libtpu reads when it is loaded: no query of the metadata server, several processes on one machine, and a
# complete host.
ENVIRONMENT = dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="true", TPU_WORKER_HOSTNAMES="localhost",
                   TPU_ACCELERATOR_TYPE="v5litepod-8")


class Chip(NamedTuple):
  """Peak rates of one chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm), which bound the time of a step."""
  peak_flops: float  # bfloat16 operations per second; a float32 product at full precision takes several
  bandwidth: float   # bytes per second of HBM
  options: dict[str, str] = {}  # options of the compiler


# The two cores of a v4 chip are one device by default (megacore).
CHIPS = {"v4": Chip(275e12, 1228e9, {"chip_config_name": "megacore"}), "v5e": Chip(197e12, 819e9),
         "v5p": Chip(459e12, 2765e9), "v6e": Chip(918e12, 1640e9)}
SIZE = r"([\d.]+)([KMGT]?)"
# Messages of libtpu 0.0.52 and of older versions.
TOO_LARGE = re.compile(rf"\({SIZE}\) exceeds available HBM \({SIZE}\)|Used {SIZE} of {SIZE} hbm")


class TopologyError(ConfigError):
  """An unknown topology, or no compiler for it; one line."""


class DoesNotFit(ConfigError):
  """A program that needs more memory than a chip has, in bytes; one line."""

  def __init__(self, takes: float, there_is: float):
    super().__init__(f"it takes {in_bytes(takes)} on a chip, where there are {in_bytes(there_is)}")
    self.takes, self.there_is = takes, there_is


class Footprint(NamedTuple):
  """Memory and cost of a program on each chip, as the compiler reports them; in bytes unless noted."""
  arguments: int
  temporaries: int
  output: int
  aliased: int      # output in the memory of arguments
  code: int
  peak: int         # maximum of arguments, output and temporaries at one time
  flops: float      # loops count once, here and in the next field
  accessed: float   # bytes read and written, in HBM and in on-chip memory
  cycles: int       # estimated cycles of all operations in sequence, with all iterations of loops; 0 if unknown
  collectives: dict[str, tuple[int, int]]  # {kind: (count, bytes)}

  @classmethod
  def of(cls, compiled: jax.stages.Compiled) -> "Footprint":
    memory: Any = compiled.memory_analysis()  # the compiler for TPUs has all three
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ""
    return cls(memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes,
               memory.alias_size_in_bytes, memory.generated_code_size_in_bytes, memory.peak_memory_in_bytes,
               cost["flops"], cost["bytes accessed"], hlo_analysis.cycles(text), hlo_analysis.collectives(text))


def chip_of(topology: str) -> Chip:
  """Return the chip of a topology, by the name before the colon. TopologyError for an unknown one."""
  kind = topology.partition(":")[0]
  if kind not in CHIPS:
    raise TopologyError(f"--topology={topology}: no chip {kind!r}; wanted one of {', '.join(CHIPS)}, as in v5e:2x4")
  return CHIPS[kind]


def topology_devices(topology: str) -> list[jax.Device]:
  """Return the devices of a topology such as v5e:2x4 or v4:2x2x1. Call it before JAX initializes its backends.

  TopologyError if the compiler is not installed, or does not know the topology."""
  chip = chip_of(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError("the compiler for TPUs is not installed: pip install 'jax[tpu]' brings it to any Linux on "
                        "x86-64; no TPU is needed")
  if jax.__version_info__ < OLDEST_JAX:
    raise TopologyError(f"jax {jax.__version__} does not compile for topologies; wanted "
                        f"{'.'.join(map(str, OLDEST_JAX))} or newer")
  from jax.experimental import topologies
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")  # otherwise JAX looks for TPUs, as libtpu is installed
  try:
    return list(topologies.get_topology_desc(topology, platform="tpu", **chip.options).devices)
  except Exception as error:  # errors of libtpu with long messages
    raise TopologyError(f"--topology={topology}: {first_line(error)}") from error


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compile a program. DoesNotFit if it exceeds the memory of a chip."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if found := TOO_LARGE.search(str(error)):
      takes, of_takes, there_is, of_there_is = (each for each in found.groups() if each is not None)
      raise DoesNotFit(_bytes(takes, of_takes), _bytes(there_is, of_there_is)) from error
    if "RESOURCE_EXHAUSTED" in str(error):
      raise TopologyError(first_line(error)) from error
    raise


def measured(lowered: jax.stages.Lowered) -> tuple[Footprint, str]:
  """Return the footprint and the HLO of a compiled program. DoesNotFit as in `compiled`."""
  program = compiled(lowered)
  return Footprint.of(program), program.as_text() or ""


def memory_of(device: jax.Device) -> float:
  """Return the bytes of memory that a program can use, from the error message for a much larger program."""
  on_it = jax.sharding.SingleDeviceSharding(device)
  enormous = jax.ShapeDtypeStruct((2**20, 2**20), np.float32, sharding=on_it)
  try:
    compiled(jax.jit(lambda x: x + 1).lower(enormous))
  except DoesNotFit as refusal:
    return refusal.there_is
  raise TopologyError(f"the compiler takes {enormous} for something that fits on a {device.device_kind}")


def largest_batch(takes: Callable[[int], float], room: float) -> tuple[int, dict[int, float]]:
  """Return the largest batch size that fits in `room` bytes (0 for none), and {batch size: bytes} of all trials.

  takes(batch) compiles for minutes. Memory is nearly linear in the batch size, which gives the next trial."""
  tried: dict[int, float] = {}
  low, batch = 0, 1
  high: Any = math.inf
  while high - low > 1:
    tried[batch] = takes(batch)
    low, high = (batch, high) if tried[batch] <= room else (low, batch)
    known = [low, high] if 0 < low and high < math.inf else sorted(tried)[-2:]
    guess = 2 * low
    if len(known) == 2 and tried[known[0]] < tried[known[1]]:
      a, b = known
      guess = a + int((b - a) * (room - tried[a]) / (tried[b] - tried[a]))
    if high == math.inf:
      batch = min(max(guess, low + 1), 16 * low)
    else:
      batch = guess if low < guess < high else low + 1 if guess == low else (low + high) // 2
  return low, tried


def in_bytes(count: float) -> str:
  """Format a number of bytes in GiB, or in MiB below 0.1 GiB."""
  return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"


def first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def _bytes(number: Any, unit: str) -> float:
  return float(number) * 1024**("KMGT".index(unit) + 1 if unit else 0)
