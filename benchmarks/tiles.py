"""Measures memory, time, bytes and PSNR of large images, in tiles and as a whole, in processes of their own.

    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 3840x2160 --tiles 0,1024
    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 12288x8192 --region 5000,3000,512,512
    python benchmarks/tiles.py --ckpt checkpoints/nano --data IMAGES --size 3840x2160 --differences 50
    python benchmarks/tiles.py --count nano --size 3840x2160 --tiles 1024

The image is a mosaic of photographs. Every command runs twice, and the last run counts: the first one compiles.
CPU time is that of all cores together, with the start of Python. --count compares the floating-point operations of an
image in tiles with those of the whole image, as XLA counts them.
"""
import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from mlic_jax.coding.tile_grid import Box, TileGrid, tile_sides
from mlic_jax.coding.tiled_format import TiledFile
from mlic_jax.data.image_io import list_images, load_image

BORDER = 8   # pixels on each side of a border of tiles


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", metavar="CONFIG", help="Count the operations of this config. Default: measure.")
  parser.add_argument("--ckpt", type=Path, help="Code with this model directory. Required, but for --count.")
  parser.add_argument("--data", type=Path, help="Take the images of this folder. Required, but for --count.")
  parser.add_argument("--size", default="3840x2160", help="Width and height of the image. Default: %(default)s.")
  parser.add_argument("--tiles", default="0,1024", help="Largest sides of tiles; 0 is the whole image. Default: "
                      "%(default)s.")
  parser.add_argument("--quality", help="Encode at this quality of a variable-rate model. Default: the middle.")
  parser.add_argument("--runs", type=int, default=2, help="Run each command so often. Default: %(default)s.")
  parser.add_argument("--differences", type=int, metavar="N", help="Compare N regions with the whole image, and pixels "
                      "of tiles with those of one synthesis, and measure nothing else. Default: off.")
  parser.add_argument("--region", help="Also decode this region, as X,Y,W,H. Default: none.")
  args = parser.parse_args()
  if args.count:
    for tile in filter(None, map(int, args.tiles.split(","))):
      count(args.count, *map(int, reversed(args.size.split("x"))), tile)
    return
  if not (args.ckpt and args.data):
    parser.error("--ckpt and --data are required without --count")
  width, height = map(int, args.size.split("x"))
  if args.differences:
    for tile in filter(None, map(int, args.tiles.split(","))):
      compare(args.ckpt, mosaic(args.data, height, width), args.quality and float(args.quality), tile, args.differences)
    return
  with tempfile.TemporaryDirectory() as folder:
    source = Path(folder) / "image.png"
    image = mosaic(args.data, height, width)
    Image.fromarray(image).save(source, compress_level=1)
    print("| tile | command | peak memory, MB | CPU time, s | bytes | PSNR, dB |\n|---|---|---:|---:|---:|---:|")
    for tile in args.tiles.split(","):
      coded, decoded = Path(folder) / f"{tile}.mlic", Path(folder) / f"{tile}.png"
      ckpt = ["--ckpt", str(args.ckpt)]
      quality = ["--quality", args.quality] if args.quality else []
      measure(tile, "encode", [str(source), str(coded), *ckpt, *quality, "--tile", tile], args.runs)
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
                               stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])})
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


def compare(ckpt: Path, image: np.ndarray, quality: float | None, tile: int, count: int) -> None:
  """Prints the largest differences in levels: of regions from the whole image, and of tiles from one synthesis."""
  import jax

  from mlic_jax.coding.codec import Codec
  from mlic_jax.coding.jit_functions import to_uint8
  codec, rng = Codec.load(ckpt).with_options(tile=tile), np.random.default_rng(0)
  blob, decoded, _ = codec.encode_with_bits(image, quality)
  differences = [difference_of_region(codec, blob, decoded, rng, *kind) for kind in itertools.islice(
      itertools.cycle(itertools.product(range(3), repeat=2)), count)]
  print(f"{count} regions, of which {differences.count(0)} are those of the whole image; largest difference "
        f"{max(differences)} levels")
  tiles, model, (height, width) = codec.tiles, codec.coder.module, image.shape[:2]
  grid, quality = tiles.grid_of(image, tile), codec.choose_quality(quality)
  padded = np.pad(image, ((0, grid.extent.bottom - height), (0, grid.extent.right - width), (0, 0)), mode="edge")
  y_hat = np.round(np.asarray(codec.coder.analyze(padded, quality).y)[0])
  whole = np.asarray(jax.jit(lambda y_hat: to_uint8(model.apply(
      codec.variables, y_hat, quality, method="synthesize")))(y_hat[None]))[0][:height, :width]
  stride = len(padded) // len(y_hat)
  parts = {number: y_hat[grid.coarser(stride).box(number).slices] for number in range(grid.num_tiles)}
  difference = np.abs(tiles.synthesize(grid, quality, parts).astype(int) - whole)
  rows, columns = (np.minimum(np.arange(side) % length, -np.arange(side) % length) < BORDER
                   for side, length in zip((height, width), grid[2:]))
  for place, mask in ("borders of tiles", rows[:, None] | columns), ("elsewhere", ~(rows[:, None] | columns)):
    print(f"synthesis, {place}: largest difference {difference[mask].max()} levels, in "
          f"{np.mean(difference[mask] > 0):.2e} of the values")


def difference_of_region(codec, blob: bytes, decoded: np.ndarray, rng: np.random.Generator, *kind: int) -> int:
  """The largest difference of a random region; `kind` puts it at the start (0), at the end (1) or anywhere (2)."""
  sizes = [int(rng.integers(1, min(side, 512) + 1)) for side in decoded.shape[:2]]
  y, x = ((0, side - size, int(rng.integers(0, side - size + 1)))[which]
          for which, side, size in zip(kind, decoded.shape, sizes))
  region = codec.decode_region(blob, x, y, sizes[1], sizes[0])
  return int(np.abs(region.astype(int) - decoded[y:y + sizes[0], x:x + sizes[1]]).max())


def count(name: str, height: int, width: int, tile: int) -> None:
  """Prints the operations of an image in tiles over those of the whole image, as XLA counts them.

  Those of encoder and decoder are of transforms and entropy model, with what the tiles have beyond the image."""
  import jax

  from mlic_jax.coding import analysis_stages, layer_crops, receptive_field, tile_cells, tile_functions
  from mlic_jax.coding.compile_specs import codec_programs
  from mlic_jax.config import CodecConfig
  from mlic_jax.model import transforms
  from mlic_jax.model.mlic import build, side_multiple
  from mlic_jax.training.config_schema import load_config
  config = CodecConfig(**dict(load_config(name, []).model))
  model, quality, stride = build(config), 1.0 if config.num_rates else None, transforms.find(config.transforms).STRIDE
  multiple, array = side_multiple(config), jax.ShapeDtypeStruct
  grid = TileGrid(height, width, *tile_sides(height, width, tile, multiple))
  positions, size = grid.coarser(stride), (grid.tile_height // stride, grid.tile_width // stride)
  padded = [-(-side // multiple) * multiple // stride for side in (height, width)]
  programs = [codec_programs(config, height, width), codec_programs(config, *grid[2:])]   # of the whole and of a tile
  shapes = programs[0]["start"][1][0]
  variables = jax.tree.map(lambda each: np.zeros(each.shape, each.dtype), shapes)   # 0 * NaN is NaN
  halos = receptive_field.halos(model, variables)
  stages = analysis_stages.measure(model, variables, halos, stride)
  layers = layer_crops.measure(model, variables, halos, stride)

  def operations(function: Callable, *arguments) -> float:
    return jax.jit(lambda *arrays: function(*arrays)).lower(*arguments).cost_analysis()["flops"]

  def transform(method: str, sides: Sequence[int], channels: int) -> float:
    run = lambda variables, x: model.apply(variables, x, quality, method=method)
    return operations(run, shapes, array((1, *sides, channels), np.float32))

  def windows(function: Callable, form: tuple, sides: Sequence[int], channels: int) -> float:
    run = lambda variables, x: function(model, variables, x, np.zeros((1, 2), np.int32), form, quality)
    return operations(run, shapes, array((1, *sides, channels), np.float32))

  def in_one_stage() -> float:
    sides = [stride * side for side in positions.window_size(halos.analysis)]
    return windows(tile_functions.analyze_window, (size, None), sides, 3)

  def in_stages() -> float:
    finer, cells = stride // stages.factor, tile_cells.analysis_cells(grid, stages.factor, config)
    sides = [stages.factor * side for side in cells.window_size(stages.first)]
    seen = [finer * side for side in positions.window_size(stages.second)]
    first = windows(tile_functions.features_of_window, (cells[2:], stages), sides, 3)
    return (first * cells.num_tiles / grid.num_tiles
            + windows(tile_functions.analyze_window, (size, stages), seen, stages.channels))

  def cropped(layers: Sequence) -> float:
    cells = tile_cells.synthesis_cells(grid, stride, config)
    crops = layer_crops.crops_of(cells, 0, halos.synthesis, layers, stride)
    run = lambda variables, y_hat: tile_functions.synthesize_tiles(
        model, variables, y_hat, quality, crops.sizes, crops.corners[None])
    window = array((1, *cells.window_size(halos.synthesis), config.M), np.float32)
    return operations(run, shapes, window) * cells.num_tiles / grid.num_tiles

  g_a = [transform("latent", [stride * side for side in sides], 3) for sides in (padded, size)]
  g_s = [transform("synthesize", sides, config.M) for sides in (padded, size)]
  part = {each: [operations(*of_size[each][:1], *of_size[each][1]) for of_size in programs]
          for each in ("analyze", "start", "nonanchors", "advance", "finish")}
  h_a, last = (np.subtract(part[whole], of_part) for whole, of_part in (("analyze", g_a), ("finish", g_s)))
  passes = np.array(part["start"]) + config.num_slices * np.array(part["nonanchors"]) + (
      config.num_slices - 1) * np.array(part["advance"])
  one_stage = in_one_stage() - h_a[1]
  analysis, synthesis = in_stages() - h_a[1] if stages else one_stage, cropped(layers)
  ratios = [(analysis, g_a[0]), (one_stage, g_a[0]), (synthesis, g_s[0]), (cropped(()), g_s[0]),
            (analysis + h_a[1] + passes[1], g_a[0] + h_a[0] + passes[0]),
            (synthesis + last[1] + passes[1], g_s[0] + last[0] + passes[0])]
  print("| config | image | tile | g_a | g_a in one stage | g_s | g_s without crops | encoder | decoder |\n"
        "|---|---|---|---:|---:|---:|---:|---:|---:|")
  print(f"| {name} | {width}x{height} | {grid.tile_width}x{grid.tile_height} | "
        + " | ".join(f"{100 * (grid.num_tiles * tile / whole - 1):+.1f} %" for tile, whole in ratios) + " |")


if __name__ == "__main__":
  main()
