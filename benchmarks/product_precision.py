"""Measures the cost of bfloat16 products in the transforms, JAX's default precision on TPUs, in bits and PSNR.

    python benchmarks/product_precision.py --ckpt checkpoints/nano --data KODAK [--limit N] [--quality 1 3 6]

A product of two bfloat16 numbers that is summed in float32 is the same on every platform, up to the order of the sum.
The benchmark therefore rounds the kernels and inputs of all convolutions in g_a, h_a and g_s to bfloat16, but not the
entropy path. It compares a codec of full precision with one that rounds on both sides, and with one that rounds only in
the decoder.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from mlic_jax.coding.checkpoint_io import load_model
from mlic_jax.data.image_io import list_images, load_image
from mlic_jax.model.mlic import build, side_multiple

TRANSFORMS = ("g_a", "g_s", "h_a")


def rounded(x):
  return x.astype(jnp.bfloat16).astype(jnp.float32)


def rounded_kernels(variables):
  leaves = flatten_dict(variables)
  return unflatten_dict({path: rounded(leaf) if path[1] in TRANSFORMS and path[-1] == "kernel" else leaf
                         for path, leaf in leaves.items()})


def round_inputs(call, args, kwargs, context):
  """Rounds the input of every module of the transforms that has a kernel; see flax.linen.intercept_methods."""
  module = context.module
  has_kernel = "kernel" in module.variables.get("params", {})
  if context.method_name == "__call__" and has_kernel and module.path[0] in TRANSFORMS:
    args = (rounded(args[0]), *args[1:])
  return call(*args, **kwargs)


def pixels(x_hat, shape) -> np.ndarray:
  return np.rint(np.clip(np.asarray(x_hat[0]), 0, 1) * 255)[:shape[0], :shape[1]]


def psnr(decoded, original) -> float:
  return 10 * np.log10(255**2 / np.square(decoded - original).mean())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", required=True, help="Model directory.")
  parser.add_argument("--data", required=True, help="Folder of images.")
  parser.add_argument("--limit", type=int, help="Number of images. Default: all.")
  parser.add_argument("--quality", type=float, nargs="+", default=[1, 3, 6], help="Qualities. Default: 1 3 6.")
  args = parser.parse_args()
  loaded = load_model(args.ckpt)
  model, variables = build(loaded.config), loaded.variables
  low, multiple = rounded_kernels(variables), side_multiple(model.config)

  def run(variables, x, quality):
    out = model.apply(variables, x, quality)
    return out.x_hat, out.y_hat, out.y_bits.sum() + out.z_bits.sum()

  def run_rounded(variables, x, quality):
    with nn.intercept_methods(round_inputs):
      return run(variables, x, quality)

  def decode_rounded(variables, y_hat, quality):
    with nn.intercept_methods(round_inputs):
      return model.apply(variables, y_hat, quality, method="synthesize")

  run, run_rounded, decode_rounded = map(jax.jit, (run, run_rounded, decode_rounded))
  print("quality  both: bits, PSNR          decoder only: PSNR, samples that differ, by at most")
  for quality in args.quality:
    rows = []
    for path in list_images(args.data)[:args.limit]:
      image = load_image(path)
      shape = image.shape[:2]
      padding = [(0, -side % multiple) for side in shape] + [(0, 0)]
      x = np.pad(image, padding, mode="edge")[None].astype(np.float32) / 255
      x_hat, y_hat, bits = run(variables, x, quality)
      x_both, _, bits_both = run_rounded(low, x, quality)
      x_alone = decode_rounded(low, y_hat, quality)
      full, both, alone = (pixels(each, shape) for each in (x_hat, x_both, x_alone))
      off = np.abs(alone - full)
      rows.append((float(bits_both / bits - 1), psnr(both, image) - psnr(full, image),
                   psnr(alone, image) - psnr(full, image), (off > 0).mean(), off.max()))
    bits, both, alone, share, most = zip(*rows, strict=True)
    print(f"{quality:7g}  {np.mean(bits):+.3%} (to {max(bits):+.3%}), {np.mean(both):+.4f} dB (to {min(both):+.4f})  "
          f"{np.mean(alone):+.4f} dB (to {min(alone):+.4f}), {np.mean(share):.2%} (to {max(share):.2%}), {max(most):g}",
          flush=True)


if __name__ == "__main__":
  main()
