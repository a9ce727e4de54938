"""estimate: compile the programs of a config for TPUs or GPUs, without one, and print their memory and time."""
import argparse
import functools
import time

from mlic_jax.commands import estimate_profile
from mlic_jax.commands.arguments import config_argument, image_size_arguments, positive_integer
from mlic_jax.console import rich_console, say

SUMMARY = "Estimate memory and time of training, evaluation or coding on TPUs or GPUs, without one."
READS_CONFIG = True
# Fields of the config with the batch size and the crop size of each estimate.
BATCH_FIELDS = {"train": ("batch_size", "crop_size"), "evaluate": ("eval_batch_size", "eval_crop_size")}
CODEC = ("encode", "decode", "refine")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  config_argument(parser)
  parser.add_argument("--topology", required=True, metavar="KIND:SIDES",
                      help="Compile for these chips, such as v5e:2x4, v4:2x2x1 or h100:8. Required.")
  parser.add_argument("--what", choices=(*BATCH_FIELDS, *CODEC), default="train",
                      help="Estimate a training step, an evaluation step, or, for one image on one chip, the functions "
                      "of encode or decode, or a step of latent optimization. Default: %(default)s.")
  parser.add_argument("--batch-size", type=positive_integer, metavar="N",
                      help="Use N images per step, over all chips. Default: the batch size of the config.")
  parser.add_argument("--find-batch", action="store_true",
                      help="Find the largest batch that fits into memory, which compiles several times. Default: off.")
  image_size_arguments(parser)
  estimate_profile.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
  from mlic_jax.errors import ConfigError
  from mlic_jax.runtime import device_topology, gpu_topology, platforms
  is_gpu = gpu_topology.is_gpu(args.topology)
  if not is_gpu:  # the plugin for CUDA wants cuDNN where jax looks for GPUs, so topology_devices asks for CPUs alone
    platforms.check_platforms()
  if args.what in CODEC and (args.batch_size or args.find_batch):
    raise ConfigError(f"--what={args.what} codes one image at a time; --batch-size and --find-batch are for "
                      f"{' and '.join(BATCH_FIELDS)}")
  if args.batch_size and args.find_batch:
    raise ConfigError("--batch-size and --find-batch exclude each other; wanted one of them")
  estimate_profile.check_arguments(args)
  devices = (gpu_topology if is_gpu else device_topology).topology_devices(args.topology)
  from mlic_jax.training.config_schema import check_fields, load_config, model_config
  config = load_config(args.config, args.overrides)
  room = gpu_topology.memory_of(args.topology) if is_gpu else device_topology.memory_of(devices[0])
  measure = functools.partial(gpu_topology.measured, room=room) if is_gpu else device_topology.measured
  if args.what in CODEC:
    say(f"{args.config}: {args.what}, {args.width}x{args.height} pixels, on one chip of {args.topology}")
    for name, program in _codec_functions(args, model_config(config, args.config), devices[0]).items():
      footprint, seconds, hlo = _compiled(program, name, measure)
      _report(name, footprint, seconds, args.topology, room)
      estimate_profile.report(args, hlo)
    return
  codec = check_fields(config)
  if args.find_batch:
    _find_batch(args, config, codec, devices, room, measure)
    return
  batch_field, _ = BATCH_FIELDS[args.what]
  config[batch_field] = args.batch_size or config[batch_field]
  say(_title(args, config, devices))
  name, program = "a step", _training_step(args.what, config, codec, devices)
  if args.part:
    name, program = f"the gradient of {args.part}", estimate_profile.lowering_of_part(args, config, codec, devices)
  footprint, seconds, hlo = _compiled(program, name, measure)
  _report(name, footprint, seconds, args.topology, room)
  estimate_profile.report(args, hlo)


def _title(args: argparse.Namespace, config, devices) -> str:
  batch_size, crop = (config[field] for field in BATCH_FIELDS[args.what])
  return (f"{args.config}: {args.what}, {batch_size} images of {crop}x{crop} on {args.topology}: {len(devices)} "
          f"chips, {batch_size // len(devices)} images on each")


def _training_step(what: str, config, codec, devices):
  """Returns a function without arguments that lowers the step."""
  from mlic_jax.training import pmap_programs
  program = pmap_programs.training_program if what == "train" else pmap_programs.evaluation_program

  def lower():
    step, arguments = program(config, codec, devices)
    return step.lower(*arguments)
  return lower


def _codec_functions(args: argparse.Namespace, codec, device) -> dict:
  import jax

  from mlic_jax.coding.compile_specs import DECODER, ENCODER, LATENT_OPTIMIZER, codec_programs
  sharding = jax.sharding.SingleDeviceSharding(device)
  on_device = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  programs = codec_programs(codec, args.height, args.width)
  lowering = lambda function, arguments: lambda: jax.jit(function).lower(*jax.tree.map(on_device, arguments))
  return {name: lowering(*programs[name])
          for name in {"encode": ENCODER, "decode": DECODER, "refine": LATENT_OPTIMIZER}[args.what]}


def _compiled(lower, name: str, measure):
  """Compiles the program that `lower` lowers, with a spinner; returns its footprint, the seconds, and its HLO.

  measure(lowered) compiles the program and returns its footprint and HLO."""
  from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

  console = rich_console(stderr=True)
  with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console,
                transient=True) as progress:
    task = progress.add_task(f"tracing {name}", total=None)
    lowered = lower()
    progress.update(task, description=f"compiling {name}")
    before = time.monotonic()
    footprint, hlo = measure(lowered)
    return footprint, time.monotonic() - before, hlo


def _find_batch(args: argparse.Namespace, config, codec, devices, room: float, measure) -> None:
  """Tries batch sizes until one fits and the next one does not."""
  from mlic_jax.runtime.device_topology import DoesNotFit, TopologyError, in_bytes, largest_batch
  field, crop = BATCH_FIELDS[args.what]
  parts = config.accumulate_steps if args.what == "train" else 1
  say(f"{args.config}: {args.what}, images of {config[crop]}x{config[crop]} on {args.topology}: {len(devices)} chips "
      f"of {in_bytes(room)}")

  def peak_memory(batch: int) -> float:
    config[field] = batch * parts * len(devices)
    name = f"{batch * parts} images on a chip"
    try:
      footprint, seconds, _ = _compiled(_training_step(args.what, config, codec, devices), name, measure)
    except DoesNotFit as refusal:
      say(f"{name:<24} {in_bytes(refusal.takes)}, too much")
      return max(refusal.takes, room + 1)
    say(f"{name:<24} {in_bytes(footprint.peak)}, compiled in {seconds:.0f} s")
    return min(footprint.peak, room)  # what compiles fits

  largest, _ = largest_batch(peak_memory, room)
  if not largest:
    raise TopologyError(f"not even {parts} images fit on a chip of {args.topology}")
  say(f"{'the largest batch':<24} {largest * parts} images on a chip, {largest * parts * len(devices)} on "
      f"{args.topology}")


def _report(name: str, footprint, seconds: float, topology_name: str, room: float) -> None:
  import importlib.metadata

  from mlic_jax.runtime import gpu_topology
  if gpu_topology.is_gpu(topology_name):
    from mlic_jax.commands.estimate_gpu import report_rows
    return _say_rows(f"{name}, on each GPU", report_rows(footprint, gpu_topology.card_of(topology_name), room, seconds))
  from mlic_jax.runtime.device_topology import chip_of, in_bytes
  chip = chip_of(topology_name)
  parts = f"{in_bytes(footprint.arguments)} arguments + {in_bytes(footprint.temporaries)} temporaries + " \
          f"{in_bytes(footprint.output)} output - {in_bytes(footprint.aliased)} aliased + " \
          f"{in_bytes(footprint.code)} code"
  flops, moving = 1e3 * footprint.flops / chip.peak_flops, 1e3 * footprint.accessed / chip.bandwidth
  collectives = ", ".join(f"{count} {kind} of {size / 1e6:.1f} MB"
                          for kind, (count, size) in sorted(footprint.collectives.items())) or "none"
  versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "libtpu"))
  rows = {"peak memory": f"{in_bytes(footprint.peak)} of {in_bytes(room)}; total {parts}",
          "work": f"{footprint.flops / 1e12:.3f} TFLOP, {footprint.accessed / 1e9:.2f} GB read and written; loops "
                  "count once",
          "collectives": collectives,
          "roofline time": f"{max(flops, moving):.2f} ms: {flops:.2f} ms at {chip.peak_flops / 1e12:.0f} TFLOP/s "
                            f"(bfloat16), {moving:.2f} ms at {chip.bandwidth / 1e9:.0f} GB/s",
          "compiler": f"estimates {footprint.cycles / 1e6:.1f} million cycles, with every iteration of loops",
          "compiled": f"in {seconds:.0f} s by {versions}"}
  if not footprint.cycles:
    del rows["compiler"]
  _say_rows(f"{name}, on each chip", rows)


def _say_rows(heading: str, rows: dict[str, str]) -> None:
  say(heading)
  for title, text in rows.items():
    say(f"  {title:<15} {text}")
