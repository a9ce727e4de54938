"""How much memory an image takes, so that one that does not fit is refused before the work, with the figure."""
from collections.abc import Iterator
from pathlib import Path

import jax

from mlic_jax.config import CodecConfig
from mlic_jax.model import transforms
from mlic_jax.model.mlic import side_multiple

MEMINFO = "/proc/meminfo"   # of Linux; elsewhere nothing is refused
PROC_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
ACTIVATIONS = 4.6           # arrays of the widest layer of g_a or g_s at the same time, as XLA allocates on CPU
HYPER_FLOATS = 16           # of h_s at the same time, per element of y
WINDOW_COPIES = 2           # of the queries, keys and values of all windows of the local attention
NUM_HEADS = 2               # of the local attention
IMAGE = 30                  # bytes a pixel: the image as uint8 and as float, padded, in and out
REFINING = 9.5              # times as much with gradients; jax.vjp stores 4.3 (nano) to 8.0 times (mlic_plus_plus)
                            # of it, at 256x256
MARGIN = 1.25               # for memory that the allocator does not give back, and XLA's scratch


class MemoryLimitError(ValueError):
  """An image that this machine has no memory for; one line with how much it takes and how much is free."""


def bytes_needed(config: CodecConfig, height: int, width: int, refining: bool = False) -> int:
  """About how many bytes encoding or decoding an image takes, or optimizing its latents, beside the weights.

  Per pixel: the transforms hold ACTIVATIONS arrays of their widest layer, which is the first one in most models, at
  half of the resolution; the entropy model adds what h_s and the local attention hold, at the positions of y. These
  follow from the sizes that XLA reports for the compiled functions; as one function runs after another, and what it
  freed is not given back at once, they are added up. At 3840x2160 the peak memory of the process grows by 7.3 GB with
  mlic_plus_plus and 1.8 GB with nano, where this gives 8.7 and 2.0 without the margin.
  """
  multiple, chosen = side_multiple(config), transforms.find(config.transforms)
  pixels = -(-height // multiple) * -(-width // multiple) * multiple**2
  activations = ACTIVATIONS * 4 * chosen.activation_floats_per_pixel(config)  # float32
  floats: float = HYPER_FLOATS * config.M   # a position of y
  if "local_attention" in config.contexts:
    window = config.window_size**2   # positions around each non-anchor, which half of the positions are
    floats += (WINDOW_COPIES * 3 * config.slice_channels * window + NUM_HEADS * window**2) / 2
  return int((REFINING if refining else 1) * MARGIN * pixels * (activations + 4 * floats / chosen.STRIDE**2 + IMAGE))


def bytes_available() -> int | None:
  """Bytes that the system can give without swapping, within the limits of the control groups of this process, as in
  containers; None where neither is known."""
  found = [each for each in (_free_memory(), *_control_group_limits()) if each is not None]
  return min(found) if found else None


def _free_memory() -> int | None:
  try:
    with open(MEMINFO) as file:
      fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    return None


def _control_group_limits() -> Iterator[int]:
  """Bytes left of each limit on the way up from the group of this process; cached files do not count."""
  try:
    lines = [line.split(":", 2) for line in PROC_CGROUP.read_text().splitlines()]
  except OSError:
    return
  for number, controllers, path in (line for line in lines if len(line) == 3):
    if number == "0" and not controllers:              # version 2
      root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
    elif "memory" in controllers.split(","):           # version 1
      root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
      continue
    group = root / path.strip("/")
    for folder in (group, *group.parents):
      if not folder.is_relative_to(root):
        break
      limit, used = _number(folder / names[0]), _number(folder / names[1])
      if limit is not None and used is not None:
        yield max(limit - used + _reclaimable(folder / "memory.stat", names[2]), 0)


def _number(path: Path) -> int | None:
  """None where there is no such file, or no limit: "max"."""
  try:
    return int(path.read_text())
  except (OSError, ValueError):
    return None


def _reclaimable(path: Path, name: str) -> int:
  try:
    return int(dict(line.split() for line in path.read_text().splitlines())[name])
  except (OSError, KeyError, ValueError):
    return 0


def check_memory(config: CodecConfig, height: int, width: int, refining: bool = False) -> None:
  """MemoryLimitError when the image will not fit. Not on accelerators, whose memory is another."""
  available = bytes_available() if jax.default_backend() == "cpu" else None
  needed = bytes_needed(config, height, width, refining)
  if available is not None and needed > available:
    raise MemoryLimitError(f"the image is {height}x{width} and takes about {_gigabytes(needed)} of memory"
                           f"{' to refine' * refining} with this model; {_gigabytes(available)} are free")


def _gigabytes(count: int) -> str:
  return f"{count / 1e9:.1f} GB"
