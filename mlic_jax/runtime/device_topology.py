"""TPUs that are not here: the compiler in libtpu compiles for them on any x86-64 Linux, and says what a chip will need.

    devices = topology_devices("v5e:2x4")                   eight chips, to lower programs for
    footprint = Footprint.of(lowered.compile())             DoesNotFit when the memory of a chip does not hold it
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

OLDEST_JAX = (0, 8)  # from here on jax.pmap takes devices that are not there
# Read by libtpu when it is loaded: it asks no metadata server which chips there are, shares the machine with other
# processes that compile, and takes this host for a whole one.
ENVIRONMENT = dict(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="true", TPU_WORKER_HOSTNAMES="localhost",
                   TPU_ACCELERATOR_TYPE="v5litepod-8")


class Chip(NamedTuple):
  """What bounds the time of a step, of one chip, as cloud.google.com/tpu/docs/system-architecture-tpu-vm says it."""
  peak_flops: float  # bfloat16 multiplications and additions a second; float32 at full precision takes several
  bandwidth: float   # bytes a second to and from its memory
  options: dict[str, str] = {}  # of the compiler


# A v4 has two cores, which run one program together unless one asks for two devices.
CHIPS = {"v4": Chip(275e12, 1228e9, {"chip_config_name": "megacore"}), "v5e": Chip(197e12, 819e9),
         "v5p": Chip(459e12, 2765e9), "v6e": Chip(918e12, 1640e9)}
SIZE = r"([\d.]+)([KMGT]?)"
# As libtpu 0.0.52 says it, and as older ones do.
TOO_LARGE = re.compile(rf"\({SIZE}\) exceeds available HBM \({SIZE}\)|Used {SIZE} of {SIZE} hbm")


class TopologyError(ConfigError):
  """No compiler for TPUs, or no such topology; one line."""


class DoesNotFit(ConfigError):
  """A program that takes more memory than a chip has, in bytes; one line."""

  def __init__(self, takes: float, there_is: float):
    super().__init__(f"it takes {in_bytes(takes)} on a chip, where there are {in_bytes(there_is)}")
    self.takes, self.there_is = takes, there_is


class Footprint(NamedTuple):
  """What the compiler says of a program on each chip; in bytes, where nothing else is said."""
  arguments: int
  temporaries: int
  output: int
  aliased: int      # of the output, in the memory of arguments
  code: int
  peak: int         # arguments, output and temporaries where most of them are there at the same time
  flops: float      # of a loop those of one turn, as the next
  accessed: float   # read and written, in the memory of the chip and in the fast one that its operations share
  cycles: int       # expected of all operations one after the other, loops as often as they turn; 0: the text has none
  collectives: dict[str, tuple[int, int]]  # kind: how many, and their bytes

  @classmethod
  def of(cls, compiled: jax.stages.Compiled) -> "Footprint":
    memory: Any = compiled.memory_analysis()  # the compiler for TPUs has all three
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ""
    return cls(memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes,
               memory.alias_size_in_bytes, memory.generated_code_size_in_bytes, memory.peak_memory_in_bytes,
               cost["flops"], cost["bytes accessed"], hlo_analysis.cycles(text), hlo_analysis.collectives(text))


def chip_of(topology: str) -> Chip:
  """By the name before the colon; TopologyError for a kind whose peak is not known here."""
  kind = topology.partition(":")[0]
  if kind not in CHIPS:
    raise TopologyError(f"--topology={topology}: no chip {kind!r}; wanted one of {', '.join(CHIPS)}, as in v5e:2x4")
  return CHIPS[kind]


def topology_devices(topology: str) -> list[jax.Device]:
  """The chips of a topology such as v5e:2x4 or v4:2x2x1. To be called before jax has looked for devices.

  TopologyError where the compiler is not installed, or knows no such topology."""
  chip = chip_of(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError("the compiler for TPUs is not installed: pip install 'jax[tpu]' brings it to any Linux on "
                        "x86-64; no TPU is needed")
  if jax.__version_info__ < OLDEST_JAX:
    raise TopologyError(f"jax {jax.__version__} does not lower for chips that are not here; wanted "
                        f"{'.'.join(map(str, OLDEST_JAX))} or newer")
  from jax.experimental import topologies
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")  # or jax looks for the chips that libtpu is for
  try:
    return list(topologies.get_topology_desc(topology, platform="tpu", **chip.options).devices)
  except Exception as error:  # libtpu's own kinds, with a page of text
    raise TopologyError(f"--topology={topology}: {first_line(error)}") from error


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """`lowered`, compiled; DoesNotFit when a chip has too little memory for it."""
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
  """The footprint and the HLO of `lowered`, compiled; DoesNotFit as `compiled`."""
  program = compiled(lowered)
  return Footprint.of(program), program.as_text() or ""


def memory_of(device: jax.Device) -> float:
  """Bytes of its memory that a program can have, as the compiler says when it refuses one that wants far more."""
  on_it = jax.sharding.SingleDeviceSharding(device)
  enormous = jax.ShapeDtypeStruct((2**20, 2**20), np.float32, sharding=on_it)
  try:
    compiled(jax.jit(lambda x: x + 1).lower(enormous))
  except DoesNotFit as refusal:
    return refusal.there_is
  raise TopologyError(f"the compiler takes {enormous} for something that fits on a {device.device_kind}")


def largest_batch(takes: Callable[[int], float], room: float) -> tuple[int, dict[int, float]]:
  """The largest batch that fits in `room` bytes, 0 for none, and what each batch takes that was tried.

  takes(batch) compiles, for minutes; memory is nearly a straight line in the batch, which says what to try next."""
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
  """With its unit: GiB, and MiB for what is small."""
  return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2f} MiB"


def first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def _bytes(number: Any, unit: str) -> float:
  return float(number) * 1024**("KMGT".index(unit) + 1 if unit else 0)
