"""Compares trainings whose entropy path multiplies in bfloat16 with trainings in full precision, by held-out loss.

    python benchmarks/rounded_products.py --data IMAGES --out DIR [--config nano] [--steps 1000] [--seeds 0 1]
                                          [--batch 4] [--crop 128] [--config.FIELD=VALUE ...]

A TPU with `--config.entropy_precision=default` rounds both operands of a product to bfloat16 and sums in float32. A CPU
ignores that option. The benchmark therefore trains on CPU with the option, and rounds by hand the operands of all
products that have this precision in the program for a TPU: forward, and with the incoming gradient in the backward
pass. Everything else stays in float32. Held-out images are those of train.py, evaluated in full precision with the
averaged parameters.

For each seed three trainings see the same batches and the same noise: `full` and `rounded`, and `nudged`, which is full
precision from initial parameters that are larger by a millionth. Trainings diverge after any difference, so the loss
of `nudged` shows how much of a difference to `full` is chance. DIR/results.json has the runs that are finished; the
same command continues after them.
"""
import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.runtime.huge_pages import use_huge_pages

if __name__ == "__main__":
  use_huge_pages()  # like train.py

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from mlic_jax.atomic_io import write_whole
from mlic_jax.data import loader
from mlic_jax.errors import ConfigError
from mlic_jax.kernels.multilinear import Form, traced_derivative
from mlic_jax.model.mlic import build
from mlic_jax.training import loop, parallel, pmap_programs
from mlic_jax.training.checkpoints import Evaluated, config_to_dict
from mlic_jax.training.config_schema import load_config
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NO_SIGNALS
from mlic_jax.training.preflight import LOCAL_FIELDS
from mlic_jax.training.step import create_state, make_train_step
from mlic_jax.training.validation import Validation

PRECISIONS = {"full": "highest", "rounded": "default", "nudged": "highest"}  # entropy_precision of each kind of run
NUDGE = 1 + 1e-6   # factor of the initial parameters
BOUND = 0.3        # percent
PRODUCTS = ("dot_general", "conv_general_dilated")
ONE_PASS = (jax.lax.Precision.DEFAULT,) * 2  # what "default" becomes; products of the transforms have None
# Primitives that call a function, and their parameter with its jaxpr.
CALLS = {"pjit": "jaxpr", "jit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr"}
LOOPS = ("scan", "while", "cond")


def with_rounded_products(function: Callable) -> Callable:
  """Returns `function` with the operands of all products of one pass rounded to bfloat16.

  `function` may have gradients inside; the result is not meant to be differentiated."""
  def rounded_function(*args):
    traced, out = jax.make_jaxpr(function, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(out), _evaluate(traced, *jax.tree.leaves(args)))
  return rounded_function


def rounded(x: jax.Array) -> jax.Array:
  """Rounds float32 to the nearest bfloat16. XLA may remove a conversion there and back, but not this."""
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _evaluate(traced: Any, *inputs: jax.Array) -> list[jax.Array]:
  """Evaluates a jaxpr with rounded products."""
  jaxpr = getattr(traced, "jaxpr", traced)
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*getattr(traced, "consts", ()), *inputs], strict=True))
  read = lambda variable: variable.val if isinstance(variable, Literal) else values[variable]
  for equation in jaxpr.eqns:
    out = _evaluate_equation(equation, [read(each) for each in equation.invars])
    values.update(zip(equation.outvars, out))
  return [read(each) for each in jaxpr.outvars]


def _evaluate_equation(equation: JaxprEqn, inputs: Sequence[jax.Array]) -> Sequence[jax.Array]:
  primitive, params, rounds = equation.primitive, equation.params, _rounds(equation)
  if primitive.name in CALLS and (rounds or primitive.name == "custom_jvp_call"):
    return _evaluate(params[CALLS[primitive.name]], *inputs)
  if rounds and primitive.name in LOOPS:
    params = {name: jax.tree.map(_rewritten, value, is_leaf=lambda each: isinstance(each, ClosedJaxpr))
              if name in ("jaxpr", "body_jaxpr", "branches") else value for name, value in params.items()}
  elif rounds and primitive.name in (*PRODUCTS, "multilinear_derivative"):
    inputs = [rounded(each) for each in inputs]
  elif rounds:
    raise NotImplementedError(f"products of one pass inside {primitive.name}")
  out = primitive.bind(*inputs, **params)
  return out if primitive.multiple_results else [out]


def _rewritten(traced: ClosedJaxpr) -> ClosedJaxpr:
  return jax.make_jaxpr(functools.partial(_evaluate, traced))(*traced.in_avals)


def _rounds(equation: JaxprEqn) -> bool:
  """Returns whether an equation is, or contains, a product that takes one pass on a TPU."""
  if equation.primitive.name in PRODUCTS:
    return equation.params["precision"] == ONE_PASS
  if equation.primitive.name == "multilinear_derivative":
    return _rounds_on_tpus(equation.params["form"], equation.params["index"])
  leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns"))
  return any(_rounds(each) for leaf in leaves if hasattr(leaf, "eqns") for each in leaf.eqns)


@functools.cache
def _rounds_on_tpus(form: Form, index: int) -> bool:
  """Returns whether a derivative of a multilinear map has a product of one pass in its implementation for TPUs.

  The operands of that product are the arguments of the map. On CPU a convolution may be computed in another way, with
  other operands in its products."""
  others = [jax.ShapeDtypeStruct(shape, np.float32) for shape in form.shapes[:index] + form.shapes[index + 1:]]
  run = functools.partial(traced_derivative, form=form, index=index, on_cpu=False)
  return any(_rounds(each) for each in jax.make_jaxpr(run)(*others).eqns)


class Trainings:
  """Trainings of one config, which share data and programs."""

  def __init__(self, config):
    self.config, self.prepared = config, loop.prepare(config)
    self.optimizer = make_optimizer(config, "cpu")
    self.validation = Validation(config, build(self.prepared.model_config), self.prepared.held_out, Path(), Evaluated())
    self._steps: dict[str, Callable] = {}

  def run(self, kind: str, seed: int) -> dict[str, Any]:
    """Trains, and returns the held-out means: loss, and those of each rate point in `rates`."""
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.seed = seed
    state = create_state(config, self.prepared.model, self.optimizer)
    if kind == "nudged":
      nudged = jax.tree.map(lambda p: p * NUDGE, state.params)
      state = state.replace(params=nudged, ema_params=None if state.ema_params is None else nudged)
    state, start = parallel.replicate(state), time.process_time()
    with contextlib.closing(loader.training_batches(
        self.prepared.images, seed=seed, batch_size=config.batch_size, sizes=self.prepared.sizes,
        downscale_probability=config.downscale_probability, downscale=config.downscale, flip=config.flip)) as batches:
      for step in range(1, config.num_steps + 1):
        state, metrics, _ = self._step(PRECISIONS[kind])(state, parallel.shard(next(batches)), None, NO_SIGNALS)
        means = _named(metrics)
        if not means["finite"]:
          raise SystemExit(f"error: {kind}, seed {seed}: the loss or a gradient is not finite at step {step}")
        if step % config.log_every == 0:
          print(f"{kind}, seed {seed}, step {step}: loss {means['loss']:.4f}, "
                f"{time.process_time() - start:.0f} CPU seconds", file=sys.stderr, flush=True)
    rates, _ = self.validation.evaluate(state.eval_params, config.num_steps)
    return dict(kind=kind, seed=seed, loss=float(np.mean([each["loss"] for each in rates])), rates=rates)

  def _step(self, precision: str) -> Callable:
    if precision not in self._steps:
      config = self.config.copy_and_resolve_references()
      with config.unlocked():
        config.entropy_precision = precision
      model = build(self.prepared.model_config, **pmap_programs.build_options(config))
      step = make_train_step(config, model, self.optimizer, platform="cpu")
      self._steps[precision] = pmap_programs.training(with_rounded_products(step))
    return self._steps[precision]


def report(results: Sequence[dict[str, Any]]) -> list[str]:
  """Returns the lines of the table of finished runs, and the verdict if rounded runs are among them."""
  lines = ["| seed | training | loss | difference | bpp | PSNR |", "|---:|---|---:|---:|---:|---:|"]
  full = {each["seed"]: each["loss"] for each in results if each["kind"] == "full"}
  differences = {}
  for each in sorted(results, key=lambda each: (each["seed"], list(PRECISIONS).index(each["kind"]))):
    kind, seed = each["kind"], each["seed"]
    mean = lambda name, rates=each["rates"]: np.mean([rate[name] for rate in rates])
    if kind != "full" and seed in full:
      differences[kind, seed] = 100 * (each["loss"] / full[seed] - 1)
    difference = f"{differences[kind, seed]:+.2f} %" if (kind, seed) in differences else ""
    lines.append(f"| {seed} | {kind} | {each['loss']:.4f} | {difference} | {mean('bpp'):.4f} | {mean('psnr'):.2f} dB |")
  if len(full) > 1:
    lines.append(f"full precision, seed against seed: {100 * (max(full.values()) / min(full.values()) - 1):.2f} %")
  for seed in sorted(full):
    if (found := differences.get(("rounded", seed))) is not None:
      relation = "within" if abs(found) <= BOUND else "outside"
      lines.append(f"seed {seed}: rounded products change the held-out loss by {found:+.2f} %, {relation} {BOUND} %")
  return lines


def _named(metrics: dict[tuple[str, ...], jax.Array]) -> dict[str, float]:
  ((names, vector),) = metrics.items()
  return dict(zip(names, np.asarray(vector)[0].tolist()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", required=True, help="Train on the images in this folder, and hold some out.")
  parser.add_argument("--out", type=Path, required=True, help="Write results to this folder, or continue there.")
  parser.add_argument("--config", default="nano", help="Config. Default: %(default)s.")
  parser.add_argument("--steps", type=int, default=1000, help="Steps of each run. Default: %(default)s.")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Seeds. Default: 0 1.")
  parser.add_argument("--batch", type=int, default=4, help="Crops per step. Default: %(default)s.")
  parser.add_argument("--crop", type=int, default=128, help="Side of the crops in pixels. Default: %(default)s.")
  parser.add_argument("--kinds", nargs="+", choices=PRECISIONS, default=list(PRECISIONS),
                      help="Kinds of runs. Default: all.")
  args, overrides = parser.parse_known_args()
  if unknown := [each for each in overrides if not each.startswith("--config.")]:
    parser.error(f"unknown arguments {' '.join(unknown)}")
  try:
    config = load_config(args.config, [f"--config.data_dir={args.data}", f"--config.num_steps={args.steps}",
                                       f"--config.batch_size={args.batch}", f"--config.crop_size={args.crop}",
                                       *overrides])
    trainings = Trainings(config)
  except ConfigError as error:
    raise SystemExit(f"error: {error}") from error
  journal, fields = args.out / "results.json", json.loads(json.dumps(config_to_dict(config)))
  fields = {name: value for name, value in fields.items() if name not in (*LOCAL_FIELDS, "seed", "entropy_precision")}
  results = []
  if journal.exists():
    found = json.loads(journal.read_text("utf-8"))
    if found["config"] != fields:
      raise SystemExit(f"error: {journal} has runs of another config; wanted the same options, or another --out")
    results = found["runs"]
  args.out.mkdir(parents=True, exist_ok=True)
  for seed, kind in ((seed, kind) for seed in args.seeds for kind in args.kinds):
    if not any((each["kind"], each["seed"]) == (kind, seed) for each in results):
      results.append(trainings.run(kind, seed))
      write_whole(journal, json.dumps(dict(config=fields, runs=results), indent=2) + "\n")
  print("\n".join(report(results)))


if __name__ == "__main__":
  main()
