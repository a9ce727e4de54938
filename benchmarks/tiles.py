"""Measures memory, time, bytes and PSNR of large images, in tiles and as a whole, in processes of their own.

    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 3840x2160 --tiles 0,1024
    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 12288x8192 --region 5000,3000,512,512

The image is a mosaic of photographs. Every command runs twice, and the last run counts: the first one compiles.
CPU time is that of all cores together, with the start of Python.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mlic_jax.coding.tile_grid import Box
from mlic_jax.coding.tiled_format import TiledFile
from mlic_jax.data.image_io import list_images, load_image


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--ckpt", type=Path, required=True, help="Code with this model directory. Required.")
  parser.add_argument("--data", type=Path, required=True, help="Take the images of this folder. Required.")
  parser.add_argument("--size", default="3840x2160", help="Width and height of the image. Default: %(default)s.")
  parser.add_argument("--tiles", default="0,1024", help="Largest sides of tiles; 0 is the whole image. Default: "
                      "%(default)s.")
  parser.add_argument("--quality", default="3", help="Encode at this quality. Default: %(default)s.")
  parser.add_argument("--runs", type=int, default=2, help="Run each command so often. Default: %(default)s.")
  parser.add_argument("--region", help="Also decode this region, as X,Y,W,H. Default: none.")
  args = parser.parse_args()
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


if __name__ == "__main__":
  main()
