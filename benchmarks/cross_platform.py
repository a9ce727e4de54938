"""Measures numerical differences between platforms that affect decoding: JAX version, instruction set, device, batch.

    python benchmarks/cross_platform.py record  --ckpt checkpoints/nano --data KODAK --out DIR [--limit N] [--quality Q]
    python benchmarks/cross_platform.py compare --ckpt checkpoints/nano DIR [--batch 2] [--plain] [--json FILE]
    python benchmarks/cross_platform.py record --config configs/mlic_plus_plus.py --fill --data KODAK \\
        --limit 3 --out DIR

`record` runs the passes of the encoder and writes one .npz for each image. `compare` runs them again on another
platform, with the recorded symbols. A decoder finds these symbols if and only if the CDF rows of all passes are equal,
so `compare` counts rows that differ. Neither uses the range coder, so both run without TensorFlow.

The caller sets the platform:

    XLA_FLAGS=--xla_cpu_max_isa=AVX2 python ...              AVX512, AVX2 or SSE4_2
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" python ...
    taskset -c 0 python ...                                  OTHER_VENV/bin/python ...

--plain computes 3x3 convolutions like backends other than CPU, without Winograd's algorithm. --fill gives the model of
the config the weights of tests/helpers/golden_fill.py, at full size. The compilation cache is off unless MLIC_JAX_CACHE
names a folder, because functions that were compiled for another platform would hide differences.
"""
import argparse
import json
import os
import platform
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jaxlib
import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.coding import jit_functions, portable_cdf
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model
from mlic_jax.coding.codec import Codec
from mlic_jax.data.image_io import list_images, load_image
from mlic_jax.kernels import winograd
from mlic_jax.model.slices import Prior

TESTS = Path(__file__).resolve().parents[1] / "tests"
SLICE_PARAMETER = re.compile(r"((?:local|channel|global_\w+)_context|entropy_parameters_\w+|lrp_\w+)\.(\d+)\.(.*)")


class Choice(NamedTuple):
  """The decisions by floats for the elements of a pass, (1, h, w/2, Cs) each: CDF rows, or rows 0 and 1 of a selection
  map."""
  positions: np.ndarray   # float32
  margins: np.ndarray     # required margins to the edges of rows, in blocks with a safe grid
  row: np.ndarray         # int32, without shifts


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True)
  record, compare = commands.add_parser("record"), commands.add_parser("compare")
  for command in (record, compare):
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt", type=Path, help="Model directory.")
    model.add_argument("--config", help="Config in the layout of the authors' release; needs --fill.")
    command.add_argument("--fill", action="store_true",
                         help="Use the weights of tests/helpers/golden_fill.py. Default: off.")
  record.add_argument("--data", type=Path, required=True, help="Folder of images. Required.")
  record.add_argument("--limit", type=int, help="Number of images. Default: all.")
  record.add_argument("--quality", type=float, help="Quality of a variable-rate model. Default: the middle.")
  record.add_argument("--out", type=Path, required=True, metavar="DIR", help="Folder for the .npz files. Required.")
  compare.add_argument("recorded", type=Path, metavar="DIR", help="Folder of --out of `record`. Required.")
  compare.add_argument("--batch", type=int, default=1,
                       help="Repeat each image this many times in a batch; the first is compared. Default: 1.")
  compare.add_argument("--plain", action="store_true",
                       help="Compute 3x3 convolutions like backends other than CPU. Default: off.")
  compare.add_argument("--json", type=Path, metavar="FILE", help="Also write the figures to FILE. Default: off.")
  args = parser.parse_args()
  if args.fill != bool(args.config):
    parser.error("--config and --fill go together")
  return args


def conditions() -> dict[str, Any]:
  """Returns the properties of the platform that may change the last bits."""
  return dict(jax=jax.__version__, jaxlib=jaxlib.__version__, platform=jax.default_backend(),
              device=jax.devices()[0].device_kind, machine=platform.machine(), cpus=len(os.sched_getaffinity(0)),
              xla_flags=os.environ.get("XLA_FLAGS", ""))


# --- the model ------------------------------------------------------------------------------

def load_codec(args: argparse.Namespace) -> Codec:
  if args.ckpt:
    return Codec.load(args.ckpt)
  return filled_codec(args.config)


def filled_codec(path: str) -> Codec:
  """Returns the codec of a config, at full size, with the weights of tests/helpers/golden_fill.py."""
  from mlic_jax.training.config_schema import load_config, model_config
  config, variables = filled(model_config(load_config(path), path))
  return Codec(Model(Path(path).stem, config, variables, build_table(config, variables), bytes(8), None))


def filled(config) -> tuple[Any, dict[str, Any]]:
  """Returns config and variables of a release of this size, with the names and shapes of the recorded manifests."""
  sys.path.insert(0, str(TESTS))
  from helpers import golden_fill

  from mlic_jax.interop.reference_weights import from_state_dict
  shapes = release_shapes(config)
  found, variables = from_state_dict({name: golden_fill.fill_one(name, shape) for name, shape in shapes.items()})
  if found != config:
    raise SystemExit(f"error: the config is {config}; wanted that of the release, {found}")
  return config, variables


def release_shapes(config) -> dict[str, tuple[int, ...]]:
  """Returns {parameter of the release: shape}, extrapolated from two recorded sizes.

  Each side is affine in N or M, and in the slice index."""
  manifest = lambda case: json.loads((TESTS / "fixtures" / "golden" / f"manifest_{case}.json").read_text())
  a, b = ({e["name"]: e["shape"] for e in manifest(case)
           if e["kind"] == "parameter"} for case in "AB")

  def side(side_a: int, side_b: int) -> int:
    per_n, per_m = (side_b - side_a) / 16, (side_b - side_a) / 32  # N is 32 and 48, M is 96 and 128
    return round(per_n * config.N if 32 * per_n == side_a else side_a + per_m * (config.M - 96))

  shapes = {}
  for name, shape in a.items():
    match = SLICE_PARAMETER.fullmatch(name)
    if not match or match[2] == "0":
      shapes[name] = tuple(map(side, shape, b[name]))
    elif match[2] == "1":
      second = f"{match[1]}.2.{match[3]}"
      for k in range(1, config.num_slices):
        at_k = [[s1 + (k - 1) * (s2 - s1) for s1, s2 in zip(each[name], each[second])] for each in (a, b)]
        shapes[f"{match[1]}.{k}.{match[3]}"] = tuple(map(side, *at_k))
  return shapes


# --- passes ---------------------------------------------------------------------------------

def reconstruct(codec: Codec, last_pass: tuple, quality, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns y_hat (1, h, w, M) and the image (H, W, 3) uint8."""
  state = _finish_slice(codec.coder.module, codec.variables, *last_pass)
  return np.asarray(state.decoded)[:1], codec.coder.synthesize(last_pass, height, width, quality)


@partial(jax.jit, static_argnums=0)
def _finish_slice(module, variables, k, hyper, state, symbols):
  return module.apply(variables, k, hyper, state, symbols, method="finish_slice")


def record_image(codec: Codec, image: np.ndarray, quality: float | None) -> dict[str, np.ndarray]:
  """Runs the passes of the encoder and returns the arrays of one .npz."""
  quality = codec.choose_quality(quality)
  latents = codec.latents(image, quality)
  z_symbols = codec.coder.symbols_of_z(latents)
  made, all_symbols = [], []

  def push(k, anchors, positions, prior):
    all_symbols.append(np.asarray(jit_functions.symbols(latents.y, k, prior.mean, anchors)))
    made.extend(choices_of(codec, positions, prior))
    return all_symbols[-1]

  last_pass = codec.coder.run_passes(z_symbols, push)
  y_hat, decoded = reconstruct(codec, last_pass, quality, *image.shape[:2])
  grids = [portable_cdf.choose_grids(each.positions, each.margins) for each in made]
  rows = [portable_cdf.rows(each.positions, pass_grids) for each, pass_grids in zip(made, grids)]
  fields = {field: np.stack([getattr(each, field) for each in made]) for field in Choice._fields}
  sizes, counts = (np.array(each) for each in zip(*((each.size, len(each.choices)) for each in grids)))
  return dict(fields, block_size=sizes, num_blocks=counts, rows=np.stack(rows), z_symbols=z_symbols,
              symbols=np.stack(all_symbols), choices=np.concatenate([each.choices for each in grids]), y_hat=y_hat,
              picture=decoded, quality=np.float32(np.nan if quality is None else quality),
              conditions=json.dumps(conditions()))


def choices_of(codec: Codec, positions: np.ndarray, prior: Prior) -> list[Choice]:
  """Returns the decisions of a pass."""
  epsilon, positions = 2.0**-portable_cdf.epsilon_exponent(codec.config), np.asarray(positions)
  found = [Choice(positions, portable_cdf.required_margins(positions, np.asarray(prior.mean), epsilon),
                  np.asarray(jit_functions.rows(prior)))]
  if codec.coder.has_map:
    in_map = portable_cdf.map_positions(prior.keep)
    found.append(Choice(in_map, np.full(in_map.shape, epsilon), np.int32(in_map > 0)))
  return found


def compare_image(codec: Codec, recorded: dict[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
  """Returns differences from the record: arrays by pass or slice, and counts."""
  repeated = lambda array: np.repeat(array, batch, axis=0)
  made, all_symbols = [], iter(recorded["symbols"])

  def pull(k, anchors, positions, prior):
    first = lambda array: np.asarray(array)[:1]
    made.extend(choices_of(codec, first(positions), jax.tree.map(first, prior)))
    return repeated(next(all_symbols))

  quality = None if np.isnan(recorded["quality"]) else recorded["quality"]
  last_pass = codec.coder.run_passes(repeated(recorded["z_symbols"]), pull)
  y_hat, decoded = reconstruct(codec, last_pass, quality, *recorded["picture"].shape[:2])
  choices = np.split(recorded["choices"], np.cumsum(recorded["num_blocks"])[:-1])
  grids = [portable_cdf.Grids(size, portable_cdf.SAFE_SHARES[0], chosen)
           for size, chosen in zip(recorded["block_size"], choices)]
  rows = [portable_cdf.rows(each.positions, choice_grids) for each, choice_grids in zip(made, grids)]
  in_slices = lambda array: array.reshape(codec.config.num_slices, -1)  # two passes per slice
  levels = np.abs(decoded.astype(int) - recorded["picture"])
  y_error = np.abs(y_hat - recorded["y_hat"]).reshape(-1, codec.config.num_slices, codec.config.slice_channels)
  off = np.abs(np.stack([each.positions for each in made]) - recorded["positions"])
  margins = np.minimum(recorded["margins"], list(map(distances_to_edges, recorded["positions"], grids)))
  return dict(off=in_slices(off), share=in_slices(off / margins).max(axis=1),
              portable=in_slices(np.stack(rows) != recorded["rows"]).sum(axis=1),
              plain=in_slices(np.stack([each.row for each in made]) != recorded["row"]).sum(axis=1),
              y_hat=y_error.max(axis=(0, 2)), levels=np.bincount(levels.ravel(), minlength=3))


def distances_to_edges(positions: np.ndarray, grids: portable_cdf.Grids) -> np.ndarray:
  """Returns the distances of the positions of a pass from the edges of rows, in their grids."""
  shifted = portable_cdf.shifted_positions(positions, grids)
  return np.abs(shifted - np.rint(shifted))


# --- the commands -----------------------------------------------------------------------------

def record(args: argparse.Namespace) -> None:
  codec, paths = load_codec(args), list_images(args.data)[:args.limit]
  args.out.mkdir(parents=True, exist_ok=True)
  print_conditions("recorded", conditions())
  for path in paths:
    arrays = record_image(codec, load_image(path), args.quality)
    np.savez(args.out / f"{path.stem}.npz", **arrays)
    chosen = np.bincount(arrays["choices"].ravel(), minlength=portable_cdf.GRIDS)
    print(f"{path.name}: {arrays['symbols'].size} symbols, {chosen.sum()} blocks, {chosen[0] / chosen.sum():.1%} with "
          f"the first grid, at most grid {chosen.nonzero()[0][-1]}", flush=True)


def compare(args: argparse.Namespace) -> None:
  if args.plain:
    winograd.is_suitable = lambda *_: False
  codec, found = load_codec(args), []
  paths = sorted(args.recorded.glob("*.npz"))
  if not paths:
    raise SystemExit(f"error: {args.recorded}: holds no .npz; `record` writes them")
  for path in paths:
    with np.load(path) as arrays:
      recorded = dict(arrays)
    found.append(compare_image(codec, recorded, args.batch))
  compared = conditions() | {"batch": args.batch, "plain": args.plain}
  summary = dict(recorded=json.loads(str(recorded["conditions"])), compared=compared, images=len(found),
                 epsilon=2.0**-portable_cdf.epsilon_exponent(codec.config),
                 slices=[slice_summary(found, k) for k in range(codec.config.num_slices)], **totals(found))
  report(summary)
  if args.json:
    write_whole(args.json, (json.dumps(summary, indent=1) + "\n").encode())


def slice_summary(found: list[dict[str, np.ndarray]], k: int) -> dict[str, float]:
  off = np.concatenate([each["off"][k] for each in found])
  other = off[off > 0]
  quantile = lambda q: float(np.quantile(other, q)) if other.size else 0.0
  return dict(elements=off.size, off=other.size / off.size, largest=float(off.max()), q999=quantile(0.999),
              median=quantile(0.5), share=float(max(each["share"][k] for each in found)),
              y_hat=float(max(each["y_hat"][k] for each in found)),
              portable_rows=int(sum(each["portable"][k] for each in found)),
              plain_rows=int(sum(each["plain"][k] for each in found)))


def totals(found: list[dict[str, np.ndarray]]) -> dict[str, int]:
  levels = np.sum([np.pad(each["levels"], (0, 256 - len(each["levels"]))) for each in found], axis=0)
  decode = lambda kind: sum(not each[kind].any() for each in found)
  return dict(portable_decode=decode("portable"), plain_decode=decode("plain"), values=int(levels.sum()),
              values_off_by_one=int(levels[1]), values_off_by_more=int(levels[2:].sum()))


def print_conditions(title: str, values: dict[str, Any]) -> None:
  print(f"{title:<10}", ", ".join(f"{name} {value}" for name, value in values.items() if value != ""))


def report(summary: dict[str, Any]) -> None:
  for title in ("recorded", "compared"):
    print_conditions(title, summary[title])
  print("\n|t - t recorded| in steps between levels, over elements that differ, and its largest share of the rounding "
        "error margin;\nrows that differ in portable and other files; largest difference of y_hat\n")
  print(f"{'slice':>5} {'differ':>8} {'median':>9} {'99.9 %':>9} {'largest':>9} {'share':>7} {'portable':>9} "
        f"{'plain':>7} {'y_hat':>9}")
  for k, row in enumerate(summary["slices"]):
    print(f"{k + 1:>5} {row['off']:>8.2%} {row['median']:>9.1e} {row['q999']:>9.1e} {row['largest']:>9.1e} "
          f"{row['share']:>7.1%} "
          f"{row['portable_rows']:>9} {row['plain_rows']:>7} {row['y_hat']:>9.1e}")
  print()
  print(f"{summary['portable_decode']} of {summary['images']} images decode as portable files, "
        f"{summary['plain_decode']} as other files")
  print(f"{summary['values_off_by_one']} of {summary['values']} samples differ by one level, "
        f"{summary['values_off_by_more']} by more")


if __name__ == "__main__":
  os.environ.setdefault("MLIC_JAX_CACHE", "")
  arguments = parse()
  {"record": record, "compare": compare}[arguments.command](arguments)
