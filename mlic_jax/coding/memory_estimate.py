"""Estimates of the memory that an image needs: an image that does not fit is refused before the work."""
from collections.abc import Iterator
from pathlib import Path

import jax

from mlic_jax.config import CodecConfig
from mlic_jax.model import transforms
from mlic_jax.model.mlic import side_multiple

MEMINFO = "/proc/meminfo"   # Linux only; on other systems no image is refused
PROC_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
ACTIVATIONS = 4.6           # simultaneous arrays of the widest layer of g_a or g_s, as XLA allocates on CPU
HYPER_FLOATS = 16           # simultaneous floats of h_s per element of y
WINDOW_COPIES = 2           # copies of the queries, keys and values of all windows of the local attention
NUM_HEADS = 2               # attention heads of the local attention
IMAGE = 30                  # bytes per pixel of the padded image, as uint8 and float, input and output
LATENT_OPTIMIZATION = 9.5   # factor for gradients; jax.vjp stores 4.3 (nano) to 8.0 times (mlic_plus_plus) as much
                            # at 256x256
MARGIN = 1.25               # for memory that the allocator does not return, and XLA's scratch memory


class MemoryLimitError(ValueError):
  """The image needs more memory than is free; the message is one line with both figures."""


def bytes_needed(config: CodecConfig, height: int, width: int, latent_optimization: bool = False) -> int:
  """Estimates the bytes for encoding, decoding or latent optimization of an image, without the weights.

  The transforms hold ACTIVATIONS arrays of their widest layer, in most models the first one, at half the resolution.
  The entropy model adds the arrays of h_s and of the local attention, at the positions of y. The constants follow from
  the sizes that XLA reports for the compiled functions. They are added up, because memory that one function frees is
  not returned before the next one runs. At 3840x2160 the peak memory of the process grows by 7.3 GB with mlic_plus_plus
  and 1.8 GB with nano; the estimate without the margin is 8.7 and 2.0 GB.
  """
  multiple, chosen = side_multiple(config), transforms.find(config.transforms)
  pixels = -(-height // multiple) * -(-width // multiple) * multiple**2
  activations = ACTIVATIONS * 4 * chosen.activation_floats_per_pixel(config)  # float32
  floats: float = HYPER_FLOATS * config.M   # per position of y
  if "local_attention" in config.contexts:
    window = config.window_size**2   # positions around each non-anchor; half of the positions are non-anchors
    floats += (WINDOW_COPIES * 3 * config.slice_channels * window + NUM_HEADS * window**2) / 2
  bytes_per_pixel = activations + 4 * floats / chosen.STRIDE**2 + IMAGE
  return int((LATENT_OPTIMIZATION if latent_optimization else 1) * MARGIN * pixels * bytes_per_pixel)


def bytes_available() -> int | None:
  """Returns the bytes that the system can provide without swapping; None if unknown.

  Limits of the control groups of this process, as in containers, count as well."""
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
  """Yields the bytes left below the limit of each control group from that of this process up, without cached files."""
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
  """Reads a number; None if there is no such file, or no limit ("max")."""
  try:
    return int(path.read_text())
  except (OSError, ValueError):
    return None


def _reclaimable(path: Path, name: str) -> int:
  try:
    return int(dict(line.split() for line in path.read_text().splitlines())[name])
  except (OSError, KeyError, ValueError):
    return 0


def is_enough_memory(config: CodecConfig, height: int, width: int, latent_optimization: bool = False) -> bool:
  """Whether the image fits into the memory of the host. Accelerators are not checked."""
  available = bytes_available() if jax.default_backend() == "cpu" else None
  return available is None or bytes_needed(config, height, width, latent_optimization) <= available


def check_memory(config: CodecConfig, height: int, width: int, latent_optimization: bool = False,
                 what: str = "the image") -> None:
  """Raises MemoryLimitError, about `what`, unless `is_enough_memory`."""
  if not is_enough_memory(config, height, width, latent_optimization):
    needed, available = bytes_needed(config, height, width, latent_optimization), bytes_available() or 0
    work = "optimizing its latents" if latent_optimization else "coding it"
    raise MemoryLimitError(f"{what} is {height}x{width}, and {work} with this model needs about "
                           f"{_gigabytes(needed)} of memory; {_gigabytes(available)} are free")


def _gigabytes(count: int) -> str:
  return f"{count / 1e9:.1f} GB"
