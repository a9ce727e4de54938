"""Trains a small model for 20 steps on each of several numbers of devices, and prints a line of losses for each.

    python tests/helpers/training_worker.py codec 1 8      or stand-in, which compiles in a second
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from helpers.linear_stub import StandIn

from configs import nano
from mlic_jax.config import CodecConfig
from mlic_jax.model.mlic import build
from mlic_jax.training import parallel
from mlic_jax.training.optimizer import make_optimizer
from mlic_jax.training.step import create_state, make_train_step

GLOBAL_BATCH = 8


def train(name: str, numbers: list[int]) -> None:
  jax.config.update("jax_num_cpu_devices", max(numbers))
  assert jax.device_count() == max(numbers)
  config = nano.get_config()
  config.batch_size, config.warmup_steps, config.num_steps, config.partial_probability = GLOBAL_BATCH, 1, 20, 0.25
  config.muon_learning_rate, config.learning_rate = 1e-2, 2e-3
  small = CodecConfig(N=8, M=16, num_slices=2, widths=(8, 8, 8), hyper_widths=(8, 8), contexts=("channel",),
                      channel_widths=(8, 8), entropy_widths=(8,), lrp_widths=(8,), num_rates=6)
  model = {"codec": build, "stand-in": StandIn}[name](small)
  if name == "stand-in":
    config.optimizer = "adam"  # as Muon, which is for convolutions, has no parameters in the stand-in
  optimizer = make_optimizer(config)
  train_step, first = make_train_step(config, model, optimizer, None, "cpu"), create_state(config, model, optimizer)
  pixels = np.random.default_rng(0).integers(0, 256, (GLOBAL_BATCH, 8, 8, 3), np.uint8)
  x = pixels.repeat(8, 1).repeat(8, 2)
  for number in numbers:
    step = parallel.pmap_over_batch(train_step, donate_state=True, devices=jax.devices()[:number])
    state = jax.tree.map(lambda leaf, number=number: np.stack([leaf] * number), first)
    losses = []
    for _ in range(config.num_steps):
      state, metrics = step(state, x.reshape(number, -1, *x.shape[1:]), None)
      losses.append(float(parallel.unreplicate(metrics)["loss"]))
    print(json.dumps(losses), flush=True)


if __name__ == "__main__":
  train(sys.argv[1], [int(number) for number in sys.argv[2:]])
