"""Tests of latent optimization: gains, guarantees and refusals."""
import dataclasses
import functools
import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from mlic_jax.__main__ import main
from mlic_jax.coding import latent_coder, latent_optimizer, memory_estimate
from mlic_jax.coding.checkpoint_io import Model, save_model
from mlic_jax.coding.codec import Codec
from mlic_jax.coding.compile_specs import codec_programs
from mlic_jax.coding.latent_optimization import CHECKS, RefineError, Schedule, _loss_of_rounded, refine
from mlic_jax.coding.memory_estimate import MemoryLimitError
from mlic_jax.config import CodecConfig
from mlic_jax.data.image_io import save_image
from mlic_jax.evaluation import codec_cost, plots
from mlic_jax.metrics import ms_ssim_8bit, mse
from mlic_jax.model.quantizers import ROUNDING, Quantizer
from mlic_jax.model.soft_rounding import LOG_ODDS, annealed

SMALL = CodecConfig(N=4, M=8, num_slices=2, transforms="helpers.light_transforms", hyper_widths=(4, 4), contexts=(),
                    entropy_widths=(4,), lrp_widths=(), num_rates=2)
TRAINING = {"config": {"distortion": "mse", "lmbdas": [0.002, 0.05]}}


@pytest.fixture(scope="module", autouse=True)
def gradient_of_one_scan():
  """A choice of the gradient by platform traces two; test_encode_options.py has it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latent_coder, "build", functools.partial(latent_coder.build, scan_unroll=1))
    yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  path, variables = tmp_path_factory.mktemp("checkpoints") / "small", random_variables(SMALL)
  last = variables["params"]["g_s"]["cells"]                 # x_hat is around gray, and hardly ever clipped
  last["kernel"], last["bias"] = 0.4 * last["kernel"], last["bias"] + 0.5
  save_model(path, SMALL, variables, training=TRAINING)
  return path


@pytest.fixture(scope="module")
def codec(checkpoint):
  return Codec.load(checkpoint, allow_custom_modules=True)


@pytest.fixture(scope="module")
def photograph(photograph):
  """An image (180, 180, 3) uint8, large enough for MS-SSIM, so that its tests compile no other size."""
  return np.tile(photograph, (3, 2, 1))[:180, :180]


@pytest.fixture(scope="module")
def code(codec):
  """The function (y, z, quality) -> CodecOutput of rounded latents."""
  return jax.jit(functools.partial(codec.coder.module.apply, codec.variables, quantizer=ROUNDING, method="code"))


def trained(codec, training):
  """Returns the same codec with the record of another training."""
  return Codec(Model("other", SMALL, codec.variables, codec.coder.table, b"12345678", training))


# --- relaxations ---------------------------------------------------------------------

@functools.partial(jax.jit, static_argnums=0)
def relaxed(kind, temperature, v, noise):
  """Returns the sample, the counted sample and the slope of the sample, (20000,) each as `v`: one program of a kind."""
  def total(v):
    sample, counted = annealed(kind, temperature).quantize(v, noise)
    return sample.sum(), (sample, counted)

  slope, (sample, counted) = jax.grad(total, has_aux=True)(v)
  return sample, counted, slope


@pytest.fixture(scope="module")
def noise():
  return np.asarray(annealed("linear", 1.0).draw(jax.random.key(1), (20_000,)))


@pytest.mark.parametrize("kind", LOG_ODDS)
def test_a_cold_relaxation_chooses_the_nearer_integer_and_a_hot_one_does_not_always(kind, noise):
  v = np.linspace(-3, 3, 20_000, dtype=np.float32) + np.float32(0.001)
  clear = np.abs(v - np.round(v)) < 0.45
  cold, _, _ = map(np.asarray, relaxed(kind, 0.01, v, np.zeros_like(v)))
  np.testing.assert_allclose(cold[clear], np.round(v)[clear], atol=1e-3)
  hot, counted, _ = map(np.asarray, relaxed(kind, 0.5, v, noise))
  assert (np.abs(hot - v) <= 1).all() and (np.round(hot) != np.round(v)).mean() > 0.05
  np.testing.assert_array_equal(hot, counted)


@pytest.mark.parametrize("kind, chance", [("atanh", lambda u: np.exp(-np.arctanh(1 - u))),
                                          ("linear", lambda u: u),
                                          ("sigmoid", lambda u: 1 / (1 + np.exp(-2.3 * np.log(u / (1 - u)))))])
def test_the_upper_integer_is_chosen_as_often_as_the_paper_says(kind, chance, noise):
  u, temperature = 0.3, 0.5
  weight = lambda u: chance(u)**(1 / temperature)
  expected = weight(u) / (weight(u) + weight(1 - u))
  above = np.asarray(relaxed(kind, temperature, np.full(20_000, 2 + u, np.float32), noise)[0]) > 2.5
  assert above.mean() == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("kind", LOG_ODDS)
def test_the_gradient_of_a_relaxation_is_finite_and_never_negative(kind):
  v = np.float32([*np.linspace(-2, 2, 19_997), 0.0, 1.0, -1.0])
  slope = np.asarray(relaxed(kind, 0.3, v, np.full_like(v, 0.1))[2])
  assert np.isfinite(slope).all() and (slope >= 0).all() and slope.max() > 0


# --- refine, alone -------------------------------------------------------------------

MIXTURE, TARGET = np.float32([[1.0, 0.6], [0.6, 1.0]]), np.float32([1.2, 0.95])  # where rounding each is not the best
START = np.float32([0.45, 0.45]), np.zeros(1, np.float32)


def mixed_loss(y, z, quantizer, key):
  received, _ = quantizer.quantize(y, quantizer.draw(key, y.shape) if quantizer.draw else None)
  return jnp.square(MIXTURE @ received - TARGET).sum() + 0 * z.sum()


def test_refining_finds_integers_that_plain_rounding_misses():
  best, _ = refine(START, mixed_loss, jax.random.key(0), Schedule(steps=60, learning_rate=0.05))
  assert mixed_loss(best, START[1], ROUNDING, None) < mixed_loss(*START, ROUNDING, None)


def test_a_relaxation_of_ones_own_is_a_function_of_the_temperature():
  temperatures = []

  def soft(temperature):
    jax.debug.callback(lambda value: temperatures.append(float(value)), temperature)
    return Quantizer(lambda residual, _: (residual, residual))

  refine(START, mixed_loss, jax.random.key(0), Schedule(steps=4, hot=0.8, cold=0.05, relaxation=soft))
  jax.effects_barrier()
  np.testing.assert_allclose(temperatures, [0.8, 0.6125, 0.425, 0.2375], rtol=1e-5)


def test_steps_become_ten_times_smaller_and_their_length_is_that_of_the_schedule():
  steepness = np.full(START[0].shape, 2.0, np.float32)
  loss = lambda y, z, quantizer, key: (steepness * y).sum() + 0 * z.sum()   # whose slope means nothing to Adam
  schedule = Schedule(steps=10, learning_rate=0.5)
  best, _ = refine(START, loss, jax.random.key(0), schedule)
  rates = [schedule.rate(number / 10) for number in range(10)]
  assert rates[0] == 0.5 and schedule.rate(1.0) == pytest.approx(0.05)
  np.testing.assert_allclose(START[0] - best, sum(rates), rtol=1e-4)


def test_it_stops_when_the_colder_half_brings_nothing_and_when_the_loss_is_not_finite():
  flat = lambda y, z, quantizer, key: 0 * y.sum() + 0 * z.sum() + 1
  shares = []
  refine(START, flat, jax.random.key(0), Schedule(steps=100), lambda done, loss: shares.append(done))
  assert shares == [each / CHECKS for each in range(9)]      # 0.6, 0.7 and 0.8 in vain
  broken = lambda y, z, quantizer, key: jnp.log(0.45 - y).sum() + 0 * z.sum()
  shares.clear()
  best = refine(START, broken, jax.random.key(0), Schedule(steps=100), lambda done, loss: shares.append(done))
  assert len(shares) == 2
  np.testing.assert_array_equal(best[0], START[0])


def test_a_time_is_kept_to():
  start = time.perf_counter()
  shares = []
  refine(START, mixed_loss, jax.random.key(0), Schedule.of("0.2s"), lambda done, loss: shares.append(done))
  assert time.perf_counter() - start >= 0.2 * shares[-1] and 0.5 < shares[-1] <= 1


# --- files ---------------------------------------------------------------------------

def test_a_refined_file_decodes_as_any_other_and_its_loss_is_lower(codec, photograph):
  true_loss = lambda blob: 8 * len(blob) / photograph[..., 0].size + 0.05 * mse(photograph, codec.decode(blob))
  refined = codec.with_options(refine=20)
  blob, predicted = refined.encode_with_reconstruction(photograph, 2)
  np.testing.assert_array_equal(codec.decode(blob), predicted)
  plain = codec.encode(photograph, 2)
  assert true_loss(blob) == pytest.approx(refined.optimizer.loss_of_file(photograph, 2, blob, predicted), rel=1e-5)
  assert true_loss(blob) < true_loss(plain)
  assert codec.encode(photograph, 2, refine=20) == blob      # the same again, and by the other way


@pytest.mark.parametrize("lmbda", [1e-7, 0.05])   # nearly all of it bits, nearly all of it distortion
@pytest.mark.parametrize("height, width", [(129, 180), (192, 192)])
def test_the_loss_is_that_of_the_image_and_not_of_its_padding(codec, code, height, width, lmbda):
  """The loss has bits per pixel of the image and the MSE of its pixels in 0 to 255, also for a padded size."""
  rng, optimizer = np.random.default_rng(0), codec.with_options(refine=1, lmbda=lmbda).optimizer
  image = rng.integers(0, 256, (height, width, 3), np.uint8)
  latents = codec.latents(image, 2)
  y = latents.y + rng.normal(size=latents.y.shape).astype(np.float32)
  out = code(y, latents.z, latents.quality)
  bits = np.asarray(out.y_bits, np.float64).sum() + np.asarray(out.z_bits, np.float64).sum()
  error = 255 * np.asarray(out.x_hat, np.float64)[0, :height, :width] - image
  wanted = bits / (height * width) + lmbda * (error**2).mean()
  loss = _loss_of_rounded((y, latents.z), optimizer.loss_of_latents(image, 2))
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_its_estimate_and_its_bits_are_those_of_the_file_without_another_refinement(codec, photograph, monkeypatch):
  refined = codec.with_options(refine=5)
  blob, predicted = refined.encode_with_reconstruction(photograph, 2)
  monkeypatch.setattr(latent_optimizer, "refine", lambda *args: pytest.fail("refined again"))
  bits, decoded = refined.estimate(photograph, 2)
  np.testing.assert_array_equal(decoded, predicted)
  assert 0.8 * bits < 8 * len(blob) < 1.01 * bits + 8 * 80 and bits < codec.estimate(photograph, 2)[0]
  assert sum(each.sum() for each in refined.element_bits(photograph, 2)) == pytest.approx(bits, rel=1e-4)


def test_refining_that_makes_it_worse_gives_the_plain_file(codec, photograph, monkeypatch):
  moved = lambda latents, *_: jax.tree.map(lambda each: each + 3, latents)
  monkeypatch.setattr(latent_optimizer, "refine", moved)
  for options in {}, {"chunked": False}, {"portable": False}:
    assert codec.encode(photograph, 1, refine=1, **options) == codec.encode(photograph, 1, **options)


def test_all_images_and_qualities_of_a_size_share_one_compiled_step(codec, photograph, caplog):
  def step(x):                                               # shows that compiling a step is logged
    return x + 1

  codec.encode(photograph, 1, refine=1)
  with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
    jax.jit(step)(0.0)
    codec.encode(photograph[:, :-1], 1.5, refine=2, lmbda=0.01)
  assert len([line for line in caplog.messages if re.match(r"Compiling (jit\()?step\b", line)]) == 1


def test_lambda_is_that_of_the_quality_and_geometric_between_two_rates(codec):
  refined = codec.with_options(refine=1)
  assert refined.objective(1) == ("mse", pytest.approx(0.002)) and refined.objective(2)[1] == pytest.approx(0.05)
  assert refined.objective(1.5)[1] == pytest.approx(0.01)
  assert codec.with_options(refine=1, lmbda=0.7).objective(1.5) == ("mse", 0.7)


def test_a_codec_of_ms_ssim_refines_for_ms_ssim_and_refuses_what_is_too_small_for_it(codec, photograph):
  refined = trained(codec, {"config": {"distortion": "ms_ssim", "lmbdas": [2.0, 60.0]}}).with_options(refine=10)
  latents = codec.latents(photograph, 2)                     # padded to 192x192
  decoded = codec.decode(codec.encode_latents(latents))
  image = np.roll(decoded, 1, axis=0)
  wanted = 1 - ms_ssim_8bit(image, decoded)
  loss = lambda lmbda: _loss_of_rounded(
      (latents.y, latents.z), refined.with_options(lmbda=lmbda).optimizer.loss_of_latents(image, 2))
  assert (loss(None) - loss(1e-6)) / 60 == pytest.approx(wanted, rel=0.01)
  assert refined.optimizer.loss_of_file(image, 2, bytes(405), decoded) == pytest.approx(0.1 + 60 * wanted)
  with pytest.raises(RefineError, match="65x130; other was trained for ms_ssim, which needs at least 176 pixels"):
    refined.encode(photograph[:65, :130], 2)


# --- refusals ------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["-3", "0", "0s", "soon", "5m", "1.5", "", "9" * 5000, "1e9s", "١"])
def test_a_budget_that_is_none_is_refused_in_one_line(text):
  with pytest.raises(RefineError, match="wanted a number of steps, such as 100, or a time, such as 50s") as error:
    Schedule.of(text)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [dict(steps=0), dict(steps=None), dict(seconds=3.0), dict(steps=None, seconds=-1.0),
                                    dict(cold=0.0), dict(learning_rate=float("nan")), dict(relaxation="warm")])
def test_a_schedule_that_cannot_be_is_refused_with_what_came(fields):
  with pytest.raises(RefineError, match=str([*fields.values()][-1])):
    Schedule(**fields)


def test_a_time_too_short_for_one_step_is_refused_with_what_one_takes(codec, photograph):
  with pytest.raises(RefineError, match=r"refine=1e-06s is too short: one step takes .* s on this machine"):
    codec.encode(photograph, 1, refine="0.000001s")


def test_a_model_that_does_not_say_its_lambda_wants_one(codec, photograph):
  for training in None, {"steps": 300}, {"config": {"lmbda": 0.1, "distortion": "mse"}}, {"config": {"lmbdas": [0.1]}}:
    with pytest.raises(RefineError, match="other: the model directory does not record the lmbda of the training"):
      trained(codec, training).encode(photograph, 1, refine=3)
  assert trained(codec, None).with_options(refine=3, lmbda=0.01).objective(1) == ("mse", 0.01)
  with pytest.raises(RefineError, match="lmbda=-1; wanted a number above 0"):
    codec.with_options(refine=3, lmbda=-1)


def test_an_image_that_fits_only_without_refining_is_refused_before_the_work(codec, photograph, monkeypatch):
  needed = [memory_estimate.bytes_needed(SMALL, 180, 180, refining) for refining in (False, True)]
  assert needed[0] < needed[1]
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: needed[1] - 1)
  monkeypatch.setattr(latent_optimizer, "refine", lambda *args: pytest.fail("work was begun"))
  codec.encode(photograph, 1)
  with pytest.raises(MemoryLimitError, match="180x180, and optimizing its latents with this model needs about 0.0 GB"):
    codec.encode(photograph, 1, refine=3)


def test_the_memory_it_asks_for_covers_what_xla_reports_and_is_no_more_than_eight_times_that():
  config = dataclasses.replace(SMALL, transforms="cheng2020", widths=(4, 4, 4), contexts=("channel",),
                               channel_widths=(4,), lrp_widths=(4,))
  step, arguments = codec_programs(config, 64, 128)["refine"]
  report = jax.jit(step).lower(*arguments).compile().memory_analysis()
  reported = report.temp_size_in_bytes + report.output_size_in_bytes
  assert reported <= memory_estimate.bytes_needed(config, 64, 128, latent_optimization=True) <= 8 * reported


# --- the command ---------------------------------------------------------------------

def test_the_command_refines_and_refuses_in_one_line(codec, checkpoint, photograph, tmp_path, capsys):
  save_image(tmp_path / "a.png", photograph)
  encode = lambda *arguments: main(["encode", str(tmp_path / "a.png"), str(tmp_path / "a.mlic"), "--ckpt",
                                    str(checkpoint), "--allow-custom-modules", "--quality", "2", *arguments])
  for arguments, line in ((["--refine", "-3"], "refine='-3'; wanted a number of steps"),
                          (["--refine", "0.000001s"], "one step takes"),
                          (["--lmbda", "1"], "--lmbda has no effect without --refine"),
                          (["--refine", "5", "--lmbda", "0"], "'0'; wanted a number above 0")):
    status = encode(*arguments)
    said = capsys.readouterr().err
    lines = [each for each in said.splitlines() if not each.startswith("compiling for")]
    assert status == 2 and line in said and len(lines) == 1 and not (tmp_path / "a.mlic").exists()
  assert encode("--refine", "5") == 0
  assert (tmp_path / "a.mlic").read_bytes() == codec.encode(photograph, 2, refine=5)


def test_a_folder_is_refined_file_by_file(codec, checkpoint, photograph, tmp_path):
  (tmp_path / "in").mkdir()
  save_image(tmp_path / "in" / "a.png", photograph)
  save_image(tmp_path / "in" / "b.png", photograph[::-1])
  assert main(["encode", str(tmp_path / "in"), "--out-dir", str(tmp_path / "out"), "--ckpt", str(checkpoint),
               "--allow-custom-modules", "--quality", "2", "--refine", "5"]) == 0
  assert (tmp_path / "out" / "a.mlic").read_bytes() == codec.encode(photograph, 2, refine=5)
  assert (tmp_path / "out" / "b.mlic").read_bytes() == codec.encode(photograph[::-1], 2, refine=5)


def test_an_evaluation_has_the_plain_and_the_refined_files_and_their_bits(codec, checkpoint, photograph, tmp_path,
                                                                          monkeypatch):
  # Parameters, which test_complexity.py counts, and plots, which test_bd_rate.py draws, take longer than all the rest.
  sizes = dict.fromkeys(("parameters", "parameters_decoder", "kmacs_per_pixel", "kmacs_per_pixel_decoder"), 1)
  monkeypatch.setattr(codec_cost, "_size", lambda config: sizes)
  monkeypatch.setattr(plots, "save_rd_plot", lambda path, *_: path.touch())
  (tmp_path / "in").mkdir()
  save_image(tmp_path / "in" / "a.png", photograph)
  assert main(["eval", "--ckpt", str(checkpoint), "--data", str(tmp_path / "in"), "--out", str(tmp_path / "out"),
               "--allow-custom-modules", "--qualities", "2", "--refine", "5", "--baselines", "none",
               "--progressive"]) == 0
  found = json.loads((tmp_path / "out" / "results.json").read_text())
  assert [entry["name"] for entry in found["checkpoints"]] == ["small", "small, refined 5"]
  plain, refined = (entry["images"][0] for entry in found["checkpoints"])
  assert plain["bytes"] == len(codec.encode(photograph, 2))
  assert refined["bytes"] == refined["progressive"][-1]["bytes"] == len(codec.encode(photograph, 2, refine=5))
  assert refined["bpp"] + 0.05 * refined["mse"] < plain["bpp"] + 0.05 * plain["mse"]
  bits = [sum(record["bits_of_slices"]) + record["bits_of_z"] for record in found["pictures"]]
  estimated = [image["bpp_estimated"] * photograph[..., 0].size for image in (plain, refined)]
  assert bits == pytest.approx(estimated, rel=1e-3)
