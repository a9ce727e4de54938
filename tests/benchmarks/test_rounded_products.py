"""Tests of the benchmark of rounded products."""
import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lowered_equations import equations_on, implementation, named
from helpers.small_configs import small_nano
from jax.extend.core import Literal, jaxpr_as_fun

from benchmarks import rounded_products
from benchmarks.rounded_products import with_rounded_products
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.model.param_shapes import param_shapes

DEFAULT = (jax.lax.Precision.DEFAULT,) * 2
PRODUCTS = ("dot_general", "conv_general_dilated")


def gradient_of_small_nano():
  """Returns the jaxpr of the gradient of a loss of a small nano, whose scan is unrolled."""
  config = CodecConfig.from_dict(dict(small_nano().model, num_rates=2, transforms="helpers.light_transforms",
                                      widths=()))
  model = build(config, transform_precision=None, entropy_precision="default", scan_unroll=config.num_slices)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = param_shapes(config)

  def loss(params, x):
    out = model.apply({"params": params}, x, 1.0, rngs={"noise": jax.random.key(0)})
    return out.y_bits.sum() + out.z_bits.sum() + jnp.square(out.x_hat - x).sum()
  return jax.make_jaxpr(jax.grad(loss))(params, x)


def one_pass(equations):
  """Returns the number of products of one pass by the shapes of their operands, which have any order."""
  return Counter(tuple(sorted(each.aval.shape for each in equation.invars)) for equation in equations
                 if equation.primitive.name in PRODUCTS and equation.params["precision"] == DEFAULT)


def products_in(traced):
  """Yields all products and multilinear maps in a jaxpr, each with the primitives that made its operands."""
  jaxpr = getattr(traced, "jaxpr", traced)
  makers = {variable: each.primitive.name for each in jaxpr.eqns for variable in each.outvars}
  for equation in jaxpr.eqns:
    if equation.primitive.name in (*PRODUCTS, "multilinear_derivative"):
      yield equation, [makers.get(each) for each in equation.invars if not isinstance(each, Literal)]
    for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
      if hasattr(parameter, "eqns"):
        yield from products_in(parameter)


def test_the_products_of_one_pass_on_a_tpu_are_rounded_and_no_others():
  gradient = gradient_of_small_nano()
  program = jax.make_jaxpr(with_rounded_products(jaxpr_as_fun(gradient)))(*gradient.in_avals)
  count, others = 0, 0
  for equation, makers in products_in(program):
    is_map = equation.primitive.name == "multilinear_derivative"
    inside = list(equations_on(implementation(equation, "tpu"), "tpu")) if is_map else [equation]
    if one_pass(inside):
      assert set(makers) == {"reduce_precision"}, equation
      count += len(makers)
    else:
      assert "reduce_precision" not in makers, equation
      others += len(named(inside, "conv_general_dilated"))
  equations = list(equations_on(program, "tpu"))
  assert len(named(equations, "reduce_precision")) == count
  on_tpus = list(equations_on(gradient, "tpu"))
  assert one_pass(equations) == one_pass(on_tpus) and count == 2 * one_pass(on_tpus).total() > 0
  assert others > 20  # transforms and last layers


def test_forward_and_gradient_have_rounded_operands_also_inside_loops_and_calls():
  def loss(x, w):
    with jax.default_matmul_precision("default"):
      repeated, _ = jax.lax.scan(lambda x, w: (jax.checkpoint(jnp.matmul)(x, w), None), x, w[None])
    with jax.default_matmul_precision("highest"):
      return jnp.sum(jax.lax.cond(x[0, 0] < 9, lambda x: x @ w, lambda x: x, repeated)**2)
  rng = np.random.default_rng(0)
  x, w = rng.standard_normal((2, 8, 8)).astype(np.float32)
  low = lambda t: np.asarray(t, jnp.bfloat16).astype(np.float32)
  last = low(x) @ low(w) @ w
  into_scan = low(2 * last @ w.T)
  found = jax.jit(with_rounded_products(jax.value_and_grad(loss, (0, 1))))(x, w)
  expected = (last**2).sum(), (into_scan @ low(w).T, low(x).T @ into_scan + (low(x) @ low(w)).T @ (2 * last))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), found, expected)
  in_full, _ = jax.value_and_grad(loss)(x, w)
  assert abs(in_full / expected[0] - 1) > 3e-4


def test_a_verdict_compares_seed_by_seed_and_finished_runs_are_not_repeated(monkeypatch, tmp_path, capsys):
  losses = {("full", 0): 2.0, ("rounded", 0): 2.004, ("nudged", 0): 2.001, ("full", 1): 2.2, ("rounded", 1): 2.222}
  ran = []

  class Runs:
    def __init__(self, config):
      assert config.num_steps == 7 and config.batch_size == 4

    def run(self, kind, seed):
      ran.append((kind, seed))
      loss = losses.pop((kind, seed))  # KeyError for the last one
      return dict(kind=kind, seed=seed, loss=loss, rates=[dict(bpp=0.5, psnr=30.0, loss=loss)])
  monkeypatch.setattr(rounded_products, "Trainings", Runs)
  command = ["rounded_products.py", "--data", "IMAGES", "--out", str(tmp_path), "--steps", "7"]
  monkeypatch.setattr(sys, "argv", command)
  with pytest.raises(KeyError):
    rounded_products.main()
  assert [(each["kind"], each["seed"]) for each in json.loads((tmp_path / "results.json").read_text())["runs"]] == [
    ("full", 0), ("rounded", 0), ("nudged", 0), ("full", 1), ("rounded", 1)]
  losses["nudged", 1] = 2.2
  ran.clear()
  rounded_products.main()
  assert ran == [("nudged", 1)]
  printed = capsys.readouterr().out
  assert "seed 0: rounded products change the held-out loss by +0.20 %, within 0.3 %" in printed
  assert "seed 1: rounded products change the held-out loss by +1.00 %, outside 0.3 %" in printed
  assert "full precision, seed against seed: 10.00 %" in printed
  monkeypatch.setattr(sys, "argv", [*command, "--config.learning_rate=0.1"])
  with pytest.raises(SystemExit, match=r"results\.json has runs of another config"):
    rounded_products.main()
