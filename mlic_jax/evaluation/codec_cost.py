"""The cost of a checkpoint: parameters, multiplications, memory, time."""
import functools
import os
import platform
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mlic_jax.config import CodecConfig
from mlic_jax.model.complexity import ENCODER_ONLY, describe
from mlic_jax.runtime.shape_cache import trim_memory

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")   # Linux only


def cost(name: str, config: CodecConfig, entries: Sequence[dict[str, Any]],
         first_run: dict[str, float | None] | None) -> dict[str, Any]:
  """Returns the entry of a checkpoint in "costs" of results.json; `entries` are its entries in "checkpoints".

  Parameters are live parameters, and kMACs are for a 768x512 image (model/complexity.py). encode_s and decode_s are
  means over images and qualities, without compilation, and with _per_megapixel times of all images over their pixels.
  first_run has the times of the first image, which compiles or reads compiled functions from the cache on disk.
  peak_memory_bytes is the peak of this process since `restart_peak_memory`, and peak_device_memory_bytes that of the
  accelerator, None without one.
  """
  means = {field: [entry["mean"][field] for entry in entries] for field in ("encode_s", "decode_s")}
  average = lambda values: None if None in values else sum(values) / len(values)
  return {"name": name, **_size(config), "encode_s": average(means["encode_s"]), "decode_s": average(means["decode_s"]),
          "encode_s_per_megapixel": _per_megapixel(entries, "encode_s"),
          "decode_s_per_megapixel": _per_megapixel(entries, "decode_s"),
          "first_run": first_run, "peak_memory_bytes": _peak_memory(),
          "peak_device_memory_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
          "device": device_name()}


@functools.cache                                         # checkpoints of a family share a config
def _size(config: CodecConfig) -> dict[str, float]:
  parts = describe(config)
  decoder = [part for part in parts if part.name not in ENCODER_ONLY]
  return {"parameters": sum(part.parameters for part in parts),
          "parameters_decoder": sum(part.parameters for part in decoder),
          "kmacs_per_pixel": sum(part.kmacs for part in parts),
          "kmacs_per_pixel_decoder": sum(part.kmacs for part in decoder)}


def _per_megapixel(entries: Sequence[dict[str, Any]], field: str) -> float | None:
  """Returns the seconds of all images and qualities over their megapixels, None for estimated rates."""
  images = [image for entry in entries for image in entry["images"]]
  if any(image[field] is None for image in images):
    return None
  return 1e6 * sum(image[field] for image in images) / sum(image["height"] * image["width"] for image in images)


def restart_peak_memory() -> None:
  """Returns freed memory to the system, and has the peak of this process begin at its present memory, on Linux."""
  trim_memory()
  if PEAK.is_file():
    PEAK.write_text("5", "utf-8")                        # see proc_pid_clear_refs(5)


def _peak_memory() -> int:
  """Returns the peak memory of this process in bytes."""
  if STATUS.is_file():
    lines = [line.split() for line in STATUS.read_text("utf-8").splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(lines[0][1])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak   # macOS counts bytes, others KiB


def device_name() -> str:
  """Returns the name of the accelerator, or of the processor with its number of cores."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return device.device_kind
  info = Path("/proc/cpuinfo")
  lines = info.read_text("utf-8").splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
