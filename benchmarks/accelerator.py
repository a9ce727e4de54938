"""Checks correctness and speed of this project on a GPU or TPU, in about eight minutes.

    python benchmarks/accelerator.py --json RESULT.json [--minutes 8] [--only parity across training codec]

* parity: differences from the authors' recorded arrays (tests/fixtures/golden), in the default precision of the device
  and in full precision.
* across: images coded on CPU are decoded on the device, and the other way round. It compares symbols, CDF rows and
  pixels, and reports the used share of the rounding error margin (benchmarks/cross_platform.py).
* training: steps per second and share of the peak for nano and MLIC++, in float32 and with transforms in bfloat16. The
  batch doubles until memory or time is exhausted, or has the sizes of --batches. --configs chooses the models.
* codec: seconds of the networks for an image, as encoder and as decoder.

It needs jax, flax, optax, orbax-checkpoint, numpy, scipy, pillow and this repository. Files are coded as well if numba
is installed. --small has sizes for CPUs, which show only that everything runs.
"""
import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cross_platform
import jax
import jax.numpy as jnp
import numpy as np
from helpers import golden_fill

from configs import mlic_plus_plus, nano
from mlic_jax.atomic_io import write_whole
from mlic_jax.coding import jit_functions, portable_cdf
from mlic_jax.coding.cdf_tables import build_table
from mlic_jax.coding.checkpoint_io import Model, load_model
from mlic_jax.coding.codec import Codec
from mlic_jax.commands.arguments import positive_integer
from mlic_jax.config import CodecConfig
from mlic_jax.interop.reference_weights import from_state_dict
from mlic_jax.model.complexity import describe
from mlic_jax.model.mlic import build
from mlic_jax.training import pmap_programs
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import COMPILE_QUICKLY, create_state
from tools import config_fields  # noqa: F401 (before configs)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
PARTS = ("parity", "across", "training", "codec")
CONFIGS = dict(nano=nano, mlic_plus_plus=mlic_plus_plus)
# Dense bfloat16 FLOP/s by the data sheets of the vendors; longer names first.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
         "A10G": 70e12, "A10": 125e12, "V100": 125e12, "T4": 65e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
         "TPU v5": 459e12, "TPU v6 lite": 918e12}
STEPS = 10          # training steps that are timed together
SMALL = dict(N=8, M=16, num_slices=2, transforms="cheng2020", widths=(8, 8, 8), channel_widths=(8, 8),
             entropy_widths=(8, 8), lrp_widths=(8,), contexts=("channel",), window_size=3)


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", type=Path, default=ROOT / "checkpoints" / "nano",
                      help="Model directory. Default: checkpoints/nano.")
  parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="Write the results to FILE. Required.")
  parser.add_argument("--minutes", type=float, default=8.0,
                      help="Start no measurement that would end later. Default: %(default)s.")
  parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="Run only these parts. Default: all.")
  parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=tuple(CONFIGS), metavar="CONFIG",
                      help="Time training steps of these configs. Default: nano mlic_plus_plus.")
  parser.add_argument("--batches", nargs="+", type=positive_integer, default=(), metavar="N",
                      help="Time training steps of these batch sizes. Default: 4 and its doubles, until memory or time "
                      "is exhausted.")
  parser.add_argument("--crop", type=positive_integer, metavar="PIXELS",
                      help="Time training steps with crops of this side. Default: that of the config.")
  parser.add_argument("--small", action="store_true", help="Use small sizes for CPUs. Default: off.")
  return parser.parse_args(argv)


# --- correctness -----------------------------------------------------------------------------

def parity(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the largest differences from the authors' arrays, by case and precision."""
  found = {}
  for case in "A" if args.small else "ABC":
    manifest = json.loads((GOLDEN / f"manifest_{case}.json").read_text())
    config, variables = from_state_dict(golden_fill.fill(manifest))
    recorded = {name: np.moveaxis(array, 1, -1) if array.ndim == 4 else array
                for name, array in np.load(GOLDEN / f"golden_{case}.npz").items()}
    x = recorded["image_u8"].astype(np.float32) / 255
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % 64), (0, -x.shape[2] % 64), (0, 0)))
    for precision in ("highest",) if args.small else (None, "highest"):
      with jax.default_matmul_precision(precision):
        out = jax.jit(build(config).apply, compiler_options=COMPILE_QUICKLY if args.small else None)(variables, x)
      got = dict(x_hat=out.x_hat, y_hat=out.y_hat, y_likelihoods=2.0**-out.y_bits, z_likelihoods=2.0**-out.z_bits)
      largest = {name: float(np.abs(np.asarray(array) - recorded[name]).max()) for name, array in got.items()}
      title = f"{case}, {'full precision' if precision else 'default precision'}"
      found[title] = largest
      say(f"parity {title}: " + ", ".join(f"{name} {value:.1e}" for name, value in largest.items()))
  return found


def across(args: argparse.Namespace) -> dict[str, Any]:
  """Codes images on CPU and on the device, and decodes them on the other."""
  model = load_model(args.ckpt)
  devices = {"cpu": jax.devices("cpu")[0], "device": jax.devices()[0]}
  codecs = {}
  for name, device in devices.items():
    with jax.default_device(device):
      codecs[name] = Codec(model)
  images = [image for case in ("A" if args.small else "ABC")
            for image in np.moveaxis(np.load(GOLDEN / f"golden_{case}.npz")["image_u8"], 1, -1)]
  has_coder = importlib.util.find_spec("numba") is not None
  results = {}
  for writer, reader in (("cpu", "device"), ("device", "cpu")):
    found, levels = [], []
    for image in images:
      with jax.default_device(devices[writer]):
        recorded = cross_platform.record_image(codecs[writer], image, None)
        blob, own = codecs[writer].encode_with_reconstruction(image) if has_coder else (None, None)
      with jax.default_device(devices[reader]):
        found.append(cross_platform.compare_image(codecs[reader], recorded, batch=1))
        if has_coder:
          levels.append(int(np.abs(codecs[reader].decode(blob).astype(int) - own).max()))
    summary = dict(cross_platform.totals(found), images=len(images),
                   share_of_margin=float(max(each["share"].max() for each in found)),
                   largest_position_error=float(max(each["off"].max() for each in found)),
                   files_decoded=len(levels), levels_off_in_files=max(levels, default=None))
    results[f"{writer} to {reader}"] = summary
    say(f"{writer} to {reader}: {summary['portable_decode']} of {len(images)} images decode, "
        f"{summary['share_of_margin']:.1%} of the margin, {len(levels)} files")
  epsilon = 2.0**-portable_cdf.epsilon_exponent(codecs["cpu"].config)
  return dict(results, epsilon=epsilon, checkpoint=args.ckpt.name)


# --- speed -------------------------------------------------------------------------------------

def training(args: argparse.Namespace, left: Callable[[], float],
             save: Callable[[Any], None] = lambda rows: None) -> list[dict[str, Any]]:
  """Returns a row for each config, precision and batch size. `save` gets the rows so far after each of them."""
  rows: list[dict[str, Any]] = []
  for name in ("nano",) if args.small else args.configs:
    for in_bfloat16 in (False,) if args.small else (False, True):
      took = 0.0
      for batch in (1,) if args.small else args.batches or (2**n for n in itertools.count(2)):
        if took >= left() / 2:  # a doubled batch takes at most twice as long, mostly to compile
          break
        began = time.monotonic()
        rows.append(training_row(args, name, in_bfloat16, batch))
        save(rows)
        if "full" in rows[-1]:
          break
        took = time.monotonic() - began
  return rows


def training_row(args: argparse.Namespace, name: str, in_bfloat16: bool, batch: int) -> dict[str, Any]:
  """Returns the speed of a training step; with full=True instead if it does not fit into memory."""
  config = CONFIGS[name].get_config()
  config.bfloat16_transforms, config.batch_size, config.crop_size = in_bfloat16, batch, args.crop or config.crop_size
  if args.small:
    config.crop_size, config.optimizer = 64, "adam"
    config.model = dict(SMALL, num_rates=len(config.lmbdas))
  row = dict(config=name, transforms="bfloat16" if in_bfloat16 else "float32", crop=config.crop_size, batch=batch)
  try:
    row.update(timed_steps(config, 1 if args.small else STEPS))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
      raise
    say(f"{name}, {row['transforms']}, batch {batch}: does not fit")
    return dict(row, full=True)
  share = "unknown" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
  say(f"{name}, {row['transforms']}, batch {batch}: {row['steps_per_second']:.2f} steps/s, "
      f"{row['crops_per_second']:.1f} crops/s, {share} of the peak")
  return row


def timed_steps(config, count: int) -> dict[str, Any]:
  """Measures steps per second of the training program of train.py on one device."""
  codec, devices = CodecConfig.from_dict(dict(config.model)), jax.devices()[:1]
  step, (_, x, *others) = pmap_programs.training_program(config, codec, devices)
  state = create_state(config, build(codec), make_optimizer(config))
  state = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
  batch = np.random.default_rng(0).integers(0, 256, x.shape, np.uint8)
  began = time.monotonic()
  state, metrics, _ = jax.block_until_ready(step(state, batch, *others))
  first = time.monotonic() - began
  began = time.monotonic()
  for _ in range(count):
    state, metrics, _ = step(state, batch, *others)
  jax.block_until_ready(metrics)
  seconds = (time.monotonic() - began) / count
  (names, values), = metrics.items()
  if not np.isfinite(values).all():
    raise SystemExit(f"error: a training step gives {dict(zip(names, np.asarray(values)[0]))}")
  operations = 3 * x.shape[1] * 2000.0 * config.crop_size**2 * kmacs(codec, config.crop_size)
  peak = peak_flops()
  memory = (devices[0].memory_stats() or {}).get("peak_bytes_in_use")
  return dict(steps_per_second=1 / seconds, crops_per_second=x.shape[1] / seconds, first_step_seconds=first,
              tflops=operations / seconds / 1e12, share_of_peak=peak and operations / seconds / peak,
              peak_bytes=memory)


@functools.cache
def kmacs(codec: CodecConfig, side: int) -> float:
  return sum(part.kmacs for part in describe(codec, side, side))


def peak_flops() -> float | None:
  """Returns the peak bfloat16 FLOP/s of the device; None if PEAKS does not have it."""
  kind = jax.devices()[0].device_kind
  return next((peak for name, peak in PEAKS.items() if name in kind), None)


def codec_times(args: argparse.Namespace, left: Callable[[], float]) -> list[dict[str, Any]]:
  """Measures encoding and decoding of an image in seconds, without the range coder, which runs on the host."""
  height, width = (64, 96) if args.small else (512, 768)
  row, column = np.mgrid[:height, :width][..., None]
  noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
  image = np.uint8(np.clip(128 + 50 * np.sin(row / [9, 14, 23]) + 30 * np.cos(column / [17, 8, 12]) + noise, 0, 255))
  rows = []
  for name in (args.ckpt.name,) if args.small else (args.ckpt.name, "mlic_plus_plus"):
    if left() < 0:
      say(f"codec, {name}: no time left")
      break
    codec = Codec(load_model(args.ckpt) if name == args.ckpt.name else fresh_model(name))
    quality, seconds = codec.choose_quality(None), {"encode": [], "decode": []}
    for _ in range(2 if args.small else 6):
      began, symbols = time.monotonic(), []
      latents = codec.latents(image, quality)

      def push(k, anchors, positions, prior, y=latents.y, symbols=symbols):
        symbols.append(np.asarray(jit_functions.symbols(y, k, prior.mean, anchors)))
        portable_cdf.choose_rows(positions, prior.mean, portable_cdf.origin_of_this_machine(codec.config))
        return symbols[-1]

      z_symbols = codec.coder.symbols_of_z(latents)
      codec.coder.run_passes(z_symbols, push)
      seconds["encode"].append(time.monotonic() - began)
      began, coded = time.monotonic(), iter(symbols)

      def pull(k, anchors, positions, prior, coded=coded):
        np.asarray(positions)
        return next(coded)

      codec.coder.synthesize(codec.coder.run_passes(z_symbols, pull), height, width, quality)
      seconds["decode"].append(time.monotonic() - began)
    rows.append(dict(model=name, height=height, width=width, **{
        f"{what}_seconds": statistics.median(each[1:]) for what, each in seconds.items()}, **{
        f"first_{what}_seconds": each[0] for what, each in seconds.items()}))
    say(f"codec, {name}, {width}x{height}: encode {rows[-1]['encode_seconds']:.3f} s, "
        f"decode {rows[-1]['decode_seconds']:.3f} s")
  return rows


def fresh_model(name: str) -> Model:
  config = mlic_plus_plus.get_config()
  codec = CodecConfig.from_dict(dict(config.model))
  variables = {"params": jax.device_get(create_state(config, build(codec), make_optimizer(config)).params)}
  return Model(name, codec, variables, build_table(codec, variables), bytes(8), None)


# --- the results -------------------------------------------------------------------------------

def say(line: str) -> None:
  print(line, flush=True)


def main(argv: list[str] | None = None) -> None:
  args, began = parse(argv), time.monotonic()
  left = lambda: 60 * args.minutes - (time.monotonic() - began)
  results = dict(cross_platform.conditions(), small=args.small, peak_flops=peak_flops())
  say(f"{results['device']}, jax {results['jax']}")
  write = lambda found: write_whole(args.json, (json.dumps(found, indent=1) + "\n").encode())
  run = dict(parity=lambda: parity(args), across=lambda: across(args), codec=lambda: codec_times(args, left),
             training=lambda: training(args, left, lambda rows: write(dict(results, training=rows))))
  for name, measure in run.items():
    if name in args.only:
      before = time.monotonic()
      results[name] = measure()
      results[f"{name}_seconds"] = time.monotonic() - before
      write(results)  # before the next part, which may run out of time


if __name__ == "__main__":
  with contextlib.suppress(KeyboardInterrupt):
    main()
