"""Measures memory, time, bytes and PSNR of large images, in tiles and as a whole, in processes of their own.

    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 3840x2160 --tiles 0,1024
    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 12288x8192 --region 5000,3000,512,512
    python benchmarks/tiles.py --count nano

The image is a mosaic of photographs. Every command runs twice, and the last run counts: the first one compiles.
CPU time is that of all cores together, with the start of Python. --count compares the floating-point operations of the
transforms of a tile with those of as many pixels of a whole image, as XLA counts them.
"""
import argparse
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mlic_jax.coding.tile_grid import Box, TileGrid
from mlic_jax.coding.tiled_format import TiledFile
from mlic_jax.data.image_io import list_images, load_image


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", metavar="CONFIG", help="Count the operations of this config. Default: measure.")
  parser.add_argument("--ckpt", type=Path, help="Code with this model directory. Required, but for --count.")
  parser.add_argument("--data", type=Path, help="Take the images of this folder. Required, but for --count.")
  parser.add_argument("--size", default="3840x2160", help="Width and height of the image. Default: %(default)s.")
  parser.add_argument("--tiles", default="0,1024", help="Largest sides of tiles; 0 is the whole image. Default: "
                      "%(default)s.")
  parser.add_argument("--quality", default="3", help="Encode at this quality. Default: %(default)s.")
  parser.add_argument("--runs", type=int, default=2, help="Run each command so often. Default: %(default)s.")
  parser.add_argument("--region", help="Also decode this region, as X,Y,W,H. Default: none.")
  args = parser.parse_args()
  if args.count:
    count(args.count)
    return
  if not (args.ckpt and args.data):
    parser.error("--ckpt and --data are required without --count")
  width, height = map(int, args.size.split("x"))
  with tempfile.TemporaryDirectory() as folder:
    source = Path(folder) / "image.png"
    image = mosaic(args.data, height, width)
    Image.fromarray(image).save(source, compress_level=1)
    print("| tile | command | peak memory, MB | CPU time, s | bytes | PSNR, dB |\n|---|---|---:|---:|---:|---:|")
    for tile in args.tiles.split(","):
      coded, decoded = Path(folder) / f"{tile}.mlic", Path(folder) / f"{tile}.png"
      ckpt = ["--ckpt", str(args.ckpt)]
      measure(tile, "encode", [str(source), str(coded), *ckpt, "--quality", args.quality, "--tile", tile],
              args.runs)
      measure(tile, "decode", [str(coded), str(decoded), *ckpt], args.runs)
      error = mean_squared_error(image, load_image(decoded))
      print(f"| {tile} | file | | | {coded.stat().st_size} | {10 * np.log10(255**2 / error):.3f} |", flush=True)
      if args.region and tile != "0":
        measure(tile, "decode", [str(coded), str(decoded), *ckpt, "--region", args.region], args.runs)
        print(f"| {tile} | bytes read for the region | | | {region_bytes(args.ckpt, coded, args.region)} | |")


def mosaic(folder: Path, height: int, width: int, side: int = 512) -> np.ndarray:
  """Tiles the centers of photographs, at most `side` pixels a side, to one image, (height, width, 3) uint8."""
  image, paths = np.empty((height, width, 3), np.uint8), list_images(folder)
  count = 0
  for top in range(0, height, side):
    for left in range(0, width, side):
      photograph = load_image(paths[count % len(paths)])
      count += 1
      place = image[top:top + side, left:left + side]
      rows, columns = (-(-size // have) for size, have in zip(place.shape, photograph.shape[:2]))
      place[:] = np.tile(photograph, (rows, columns, 1))[:place.shape[0], :place.shape[1]]
  return image


def measure(tile: str, command: str, arguments: list[str], runs: int) -> None:
  """Runs a command and prints a row for the last run."""
  for _ in range(runs):
    process = subprocess.Popen([sys.executable, "-m", "mlic_jax", command, *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _pid, status, usage = os.wait4(process.pid, 0)
    if status:
      sys.exit(output)
  label = f"{command} {arguments[-1]}" if "--region" in arguments else command
  memory, seconds = 1024 * usage.ru_maxrss / 1e6, usage.ru_utime + usage.ru_stime
  print(f"| {tile} | {label} | {memory:.0f} | {seconds:.1f} | | |", flush=True)


def mean_squared_error(image: np.ndarray, other: np.ndarray) -> float:
  total = sum(np.square(image[i:i + 256].astype(np.int32) - other[i:i + 256]).sum(dtype=np.float64)
              for i in range(0, len(image), 256))
  return total / image.size


def region_bytes(ckpt: Path, coded: Path, region: str) -> int:
  """Bytes of the file that a decoder of the region reads."""
  from mlic_jax.coding.codec import Codec
  x, y, width, height = map(int, region.split(","))
  with coded.open("rb") as file:
    tiled = TiledFile(file)
    Codec.load(ckpt).open_tiled(tiled).decode(Box(y, x, y + height, x + width))
  return tiled.bytes_read


def count(name: str) -> None:
  """Prints operations of g_a and g_s in tiles over those of the whole, by the size of the tile."""
  import jax

  from mlic_jax.coding import layer_crops, receptive_field
  from mlic_jax.config import CodecConfig
  from mlic_jax.model import transforms
  from mlic_jax.model.mlic import build
  from mlic_jax.training.config_schema import load_config
  config = CodecConfig(**dict(load_config(name, []).model))
  model, quality, stride = build(config), 1.0 if config.num_rates else None, transforms.find(config.transforms).STRIDE
  floats = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, quality), floats(1, 4 * stride, 4 * stride, 3))
  variables = jax.tree.map(lambda each: np.zeros(each.shape, each.dtype), shapes)   # 0 * NaN is NaN
  halos = receptive_field.halos(model, variables)
  layers = layer_crops.measure(model, variables, halos, stride)

  def operations(function: Callable, *arguments) -> float:
    return jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, method=function)).lower(
        shapes, *arguments).cost_analysis()["flops"]

  analysis = lambda model, x: model.latent(x, quality)
  synthesis = lambda model, y_hat: model.synthesize(y_hat, quality)
  print("| tile | g_a | g_s | g_s without crops |\n|---|---:|---:|---:|")
  for tile_height, tile_width in ((768, 960), (1024, 1024), (2048, 2048)):
    grid = TileGrid(3 * tile_height, 3 * tile_width, tile_height, tile_width).coarser(stride)
    window = grid.window_size(halos.synthesis)
    whole = operations(synthesis, floats(1, grid.tile_height, grid.tile_width, config.M))
    ratios = [operations(analysis, floats(1, *(stride * side for side in grid.window_size(halos.analysis)), 3))
              / operations(analysis, floats(1, tile_height, tile_width, 3))]
    for chosen in layers, ():
      sizes, corners = layer_crops.crops_of(grid, 4, halos.synthesis, chosen, stride)
      cropped = functools.partial(layer_crops.synthesize, quality=quality, sizes=sizes, corners=corners[None])
      ratios.append(operations(cropped, floats(1, *window, config.M)) / whole)
    print(f"| {tile_width}x{tile_height} | " + " | ".join(f"{100 * (ratio - 1):+.1f} %" for ratio in ratios) + " |")


if __name__ == "__main__":
  main()
