"""Tests of programs that are traced once on CPU and lowered for TPUs, GPUs and CPUs."""
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.linear_stub import StandIn
from helpers.lowered_equations import equations_on, kernels, named, products

from configs import nano
from mlic_jax.coding.compile_specs import codec_programs
from mlic_jax.config import CodecConfig
from mlic_jax.kernels.convolution import conv2d, depthwise_conv
from mlic_jax.model.mlic import for_gradients
from mlic_jax.model.quantizers import NOISE, ROUNDING
from mlic_jax.model.slices import Slices
from mlic_jax.training import pmap_programs
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.preemption import NO_SIGNALS
from mlic_jax.training.step import make_train_step, state_shapes

PLATFORMS = ("tpu", "cuda", "cpu")
SLICES = 4        # no other loop of the programs below is as long
QUICK = (1, 3)    # a row of three taps: Winograd's, on CPU
PLAIN = (3, 3)
# 64x64 pixels are 1024 positions at half of the resolution, where 32 channels are enough for the quick convolution.
SMALL = dict(N=4, M=16, num_slices=SLICES, transforms="cheng2020", widths=(32, 4, 4), contexts=("channel",),
             channel_widths=(4,), entropy_widths=(4,), lrp_widths=(4,), num_rates=2)


@pytest.fixture(scope="module", name="config")
def small_config():
  c = nano.get_config()
  c.model, c.lmbdas = SMALL, c.lmbdas[:2]
  c.crop_size = c.eval_crop_size = 64
  c.batch_size = c.eval_batch_size = 2 * jax.device_count()
  c.ema_decay, c.optimizer = 0.0, "adam"
  return c


def of_few_layers(config, **fields):
  """The config of a training and of its codec, whose `fields` differ from SMALL."""
  config = config.copy_and_resolve_references()
  config.crop_size = 256  # 1024 positions at an eighth of the resolution
  config.model = dict(SMALL, transforms="helpers.light_transforms", widths=(), contexts=(), lrp_widths=(), **fields)
  return config, CodecConfig.from_dict(config.model.to_dict())


@pytest.fixture(scope="module", name="traced")
def traced_programs(config):
  """{name: (function, its arguments as shapes, its jaxpr)}

  The gradients of all layers are in "refine", so that those of a training step are of few."""
  codec = CodecConfig.from_dict(dict(SMALL))
  found = dict(evaluation=pmap_programs.evaluation_program(config, codec), **codec_programs(codec, 64, 64))
  found["training"] = pmap_programs.training_program(*of_few_layers(config, N=32))
  jitted = {name: (jax.jit(function), arguments) for name, (function, arguments) in found.items()}
  return {name: (function, arguments, function.trace(*arguments).jaxpr)
          for name, (function, arguments) in jitted.items()}


@pytest.fixture(scope="module")
def lowered(traced):
  """lowered(name, platform) -> the equations of a program on a platform"""
  return functools.cache(lambda name, platform: tuple(equations_on(traced[name][2], platform)))


@pytest.mark.parametrize("name", ["training", "evaluation", "analyze", "start", "nonanchors", "advance", "finish",
                                  "refine"])
def test_one_trace_is_exported_for_tpus_gpus_and_cpus(traced, name):
  function, arguments, _ = traced[name]
  exported = jax.export.export(function, platforms=PLATFORMS)(*arguments)
  assert exported.platforms == PLATFORMS
  text = exported.mlir_module()
  assert "f64" not in text and "callback" not in text


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["training", "evaluation", "analyze", "finish", "refine"])
def test_convolutions_are_the_quick_ones_on_cpu_and_plain_ones_elsewhere(lowered, name, platform):
  found = kernels(lowered(name, platform))
  assert (QUICK in found) == (platform == "cpu")
  assert PLAIN in found  # also on CPU, where an image or its channels are few


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["training", "refine"])
def test_the_slices_are_one_loop_where_there_is_a_gradient_but_on_cpu(lowered, name, platform):
  lengths = [each.params["length"] for each in named(lowered(name, platform), "scan")]
  assert lengths.count(SLICES) == (0 if platform == "cpu" else 2)  # forward and back


@pytest.mark.parametrize("platform", PLATFORMS)
def test_an_evaluation_is_one_loop_and_one_reduction_on_cpu(lowered, platform):
  equations = lowered("evaluation", platform)
  assert [each.params["length"] for each in named(equations, "scan")] == [SLICES]
  reduced = [len(each.invars) for each in equations if each.primitive.name.startswith("psum") and each.invars]
  assert sum(reduced) == 1 if platform == "cpu" else sum(reduced) > 1


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["evaluation", "analyze", "start", "nonanchors", "advance", "finish", "refine"])
def test_evaluation_and_coding_multiply_in_full_precision(lowered, name, platform):
  assert products(lowered(name, platform)) == {jax.lax.Precision.HIGHEST}


def test_training_multiplies_in_full_precision_in_the_entropy_path_alone(lowered):
  assert products(lowered("training", "tpu")) == {None, jax.lax.Precision.HIGHEST}


def test_training_keeps_the_precision_that_the_caller_of_jax_has_chosen(config, monkeypatch):
  monkeypatch.setattr(pmap_programs, "make_train_step", lambda *args: make_train_step(*args[:-1], "tpu"))
  step, arguments = pmap_programs.training_program(*of_few_layers(config))
  with jax.default_matmul_precision("high"):
    found = products(equations_on(jax.jit(step).trace(*arguments).jaxpr, "tpu"))
  assert found == {jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_is_taken_or_left_as_a_whole_on_cpu_alone(lowered, platform):
  choices = named(lowered("training", platform), "cond")
  assert len(choices) == (1 if platform == "cpu" else 0)


def test_parts_of_a_batch_are_a_loop_that_is_unrolled_on_cpu(config):
  config = config.copy_and_resolve_references()
  config.model, config.accumulate_steps, config.batch_size = dict(N=4, M=8, num_slices=2, num_rates=2), 5, 5
  model, optimizer = StandIn(CodecConfig(**config.model)), make_optimizer(config)
  step = pmap_programs.training(make_train_step(config, model, optimizer))
  state = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape), leaf.dtype),
                       state_shapes(config, model, optimizer))
  traced = jax.make_jaxpr(step)(state, np.zeros((1, 5, 64, 64, 3), np.uint8), None, NO_SIGNALS)
  unrolled = {platform: [each.params["unroll"] for each in named(equations_on(traced, platform), "scan")
                         if each.params["length"] == 5] for platform in PLATFORMS}
  assert unrolled == {"cpu": [5], "cuda": [1], "tpu": [1]}
  for platform, unroll in unrolled.items():  # a step that is told where it will run has chosen before it is lowered
    step = pmap_programs.training(make_train_step(config, model, optimizer, None, platform))
    traced = jax.make_jaxpr(step)(state, np.zeros((1, 5, 64, 64, 3), np.uint8), None, NO_SIGNALS)
    for lowered_for in PLATFORMS:
      loops = named(equations_on(traced, lowered_for), "scan")
      assert [each.params["unroll"] for each in loops if each.params["length"] == 5] == unroll


@pytest.mark.parametrize("scan_unroll, loops_on_cpu, loops_elsewhere", [(0, 0, 2), (1, 2, 2), (SLICES, 0, 0)])
def test_the_gradient_of_the_scan_alone_is_a_loop_but_on_cpu(scan_unroll, loops_on_cpu, loops_elsewhere):
  config = CodecConfig.from_dict(dict(SMALL, contexts=(), lrp_widths=()))
  y, hyper = np.ones((1, 4, 4, 16), np.float32), np.ones((1, 4, 4, 32), np.float32)
  slices = Slices(config, scan_unroll)
  params = jax.eval_shape(lambda: slices.init(jax.random.key(0), hyper, y, method="scan"))
  bits = lambda params, quantizer: slices.apply(params, hyper, y, quantizer, y, method="scan").bits.sum()

  def loops(quantizer):
    traced = jax.make_jaxpr(jax.grad(bits), static_argnums=1)(params, quantizer)
    return [len(named(equations_on(traced, platform), "scan")) for platform in ("cpu", "tpu")]

  assert loops(NOISE) == [loops_on_cpu, loops_elsewhere]
  if scan_unroll == 0:  # plain rounding is for what takes no gradient: a loop everywhere
    assert loops(ROUNDING) == [2, 2]


def test_a_step_that_is_told_how_to_scan_is_not_traced_twice():
  told = StandIn(CodecConfig(N=4, M=8, num_slices=2), scan_unroll=1)
  assert for_gradients(told, "cpu") is told and for_gradients(told, None) is told
  untold = StandIn(CodecConfig(N=4, M=8, num_slices=2))
  assert for_gradients(untold, "cpu").scan_groups == (1, 1) and for_gradients(untold, None).scan_groups == (2,)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_depthwise_convolution_is_a_sum_of_taps_on_cpu_and_grouped_elsewhere(platform):
  def response(x, kernel):
    with jax.default_matmul_precision("highest"):
      return depthwise_conv(x, kernel, jnp.zeros(2)).sum()

  traced = jax.make_jaxpr(jax.value_and_grad(response, argnums=(0, 1)))(np.zeros((1, 4, 4, 2)), np.zeros((3, 3, 1, 2)))
  equations = list(equations_on(traced, platform))
  loops = [each.params["length"] for each in named(equations, "scan")]
  convolutions = [(max(each.params["feature_group_count"], each.params["batch_group_count"]), each.params["precision"])
                  for each in named(equations, "conv_general_dilated")]
  in_full = (jax.lax.Precision.HIGHEST,) * 2
  assert (loops, convolutions) == (([9], []) if platform == "cpu" else ([], 3 * [(2, in_full)]))


@pytest.mark.parametrize("conv, kernel", [(conv2d, (3, 3, 8, 8)), (depthwise_conv, (3, 3, 1, 8))])
def test_the_gradient_of_a_bias_is_a_product_on_cpu(conv, kernel):
  def gradient(x, kernel, dy):
    return jax.vjp(lambda bias: conv(x, kernel, bias), jnp.zeros(8))[1](dy)

  x = np.zeros((1, 4, 4, 8))
  equations = list(equations_on(jax.make_jaxpr(gradient)(x, np.zeros(kernel), x), "cpu"))
  assert named(equations, "dot_general") and not named(equations, "reduce_sum")


@pytest.mark.parametrize("stride", [1, 2])
def test_loops_over_taps_and_blocks_need_no_array_of_indices_on_cpu(stride):
  """XLA takes milliseconds for each kernel of a step, and there are hundreds of these loops."""
  def response(x, kernel, depthwise_kernel):
    return conv2d(x, kernel, jnp.zeros(8), stride).sum() + depthwise_conv(x, depthwise_kernel, jnp.zeros(8)).sum()

  x, kernels = np.zeros((2, 64, 64, 8)), (np.zeros((5, 5, 8, 8)), np.zeros((3, 3, 1, 8)))
  equations = list(equations_on(jax.make_jaxpr(jax.grad(response, argnums=(1, 2)))(x, *kernels), "cpu"))
  assert {each.params["length"] for each in named(equations, "scan")} >= {25, 9}
  assert not named(equations, "iota")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_gradient_multiplies_in_the_precision_of_its_forward_pass(stride, platform):
  def response(x, kernel):
    with jax.default_matmul_precision("highest"):
      return conv2d(x, kernel, jnp.zeros(32), stride).sum()

  traced = jax.make_jaxpr(jax.grad(response, argnums=(0, 1)))(np.zeros((1, 32, 32, 32)), np.zeros((3, 3, 32, 32)))
  equations = list(equations_on(traced, platform))
  products = named(equations, "conv_general_dilated") + named(equations, "dot_general")
  assert len(products) >= 2
  assert {each.params["precision"] for each in products} == {(jax.lax.Precision.HIGHEST,) * 2}
