"""Report of `mlic-jax estimate` for GPUs."""
import importlib.metadata

from mlic_jax.runtime.device_topology import in_bytes
from mlic_jax.runtime.gpu_topology import Card, Footprint


def report_rows(footprint: Footprint, card: Card, room: float, seconds: float) -> dict[str, str]:
  """Returns {title: text}: memory, work and time of a program on each GPU, where `room` bytes of memory are usable."""
  kernels = footprint.kernels
  parts = (f"{in_bytes(footprint.arguments)} arguments + {in_bytes(footprint.temporaries)} temporaries + "
           f"{in_bytes(footprint.output)} output - {in_bytes(footprint.aliased)} aliased")
  collectives = ", ".join(f"{count} {kind} of {size / 1e6:.1f} MB"
                          for kind, (count, size) in sorted(footprint.collectives.items())) or "none"
  others = {kind: count for kind, count in kernels.by_kind.items() if not kind.startswith("__cudnn$conv")}
  return {
      "peak memory": f"{in_bytes(footprint.peak)} of {in_bytes(room)} that JAX reserves of {in_bytes(card.memory)}, "
                     f"without the workspaces of cuDNN; {parts}",
      "work": f"{footprint.flops / 1e12:.3f} TFLOP in products and convolutions, {kernels.accessed / 1e9:.2f} GB read "
              "and written, with every iteration of loops",
      "launches": f"{kernels.launches}, {kernels.in_loops} of them in loops: "
                  f"{', '.join(f'{count} {kind}' for kind, count in others.items())}",
      "convolutions": ", ".join(f"{count} {kind}" for kind, count in kernels.convolutions.items()) + ", by cuDNN"
                      if kernels.convolutions else "none",
      "collectives": collectives,
      "roofline time": _roofline(footprint, card),
      "compiled": f"in {seconds:.0f} s by " + ", ".join(f"{package} {importlib.metadata.version(package)}"
                                                         for package in ("jax", _plugin_package()))}


def _roofline(footprint: Footprint, card: Card) -> str:
  moving = 1e3 * footprint.kernels.accessed / card.bandwidth
  memory = f"{moving:.2f} ms at {card.bandwidth / 1e9:.0f} GB/s"
  if card.peak_flops is None:
    return f"{moving:.2f} ms: {memory}; no peak of bfloat16 is known"
  products = 1e3 * footprint.flops / card.peak_flops
  return (f"{max(products, moving):.2f} ms: {products:.2f} ms at {card.peak_flops / 1e12:.0f} TFLOP/s (bfloat16), "
          f"{memory}")


def _plugin_package() -> str:
  """Returns the name of the installed package with the CUDA plugin of JAX."""
  names = ("jax-cuda12-plugin", "jax-cuda13-plugin")
  return next(name for name in names if _is_installed(name))


def _is_installed(name: str) -> bool:
  try:
    importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True
