"""Trains a small model for 20 steps on each of several numbers of devices, and prints a line of losses for each.

    python tests/helpers/training_worker.py codec 1 8      or stand-in, which compiles in a second

Each number has a process, which is forked after the imports.
"""
import json
import os
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


def train(name: str, devices: int) -> None:
  jax.config.update("jax_num_cpu_devices", devices)
  assert jax.device_count() == devices
  config = nano.get_config()
  config.batch_size, config.warmup_steps, config.num_steps, config.partial_probability = GLOBAL_BATCH, 1, 20, 0.25
  config.muon_learning_rate, config.learning_rate = 1e-2, 2e-3
  small = CodecConfig(N=8, M=16, num_slices=2, widths=(8, 8, 8), hyper_widths=(8, 8), contexts=("channel",),
                      channel_widths=(8, 8), entropy_widths=(8,), lrp_widths=(8,), num_rates=6)
  model, optimizer = {"codec": build, "stand-in": StandIn}[name](small), make_optimizer(config)
  state = parallel.replicate(create_state(config, model, optimizer))
  step = parallel.pmap_over_batch(make_train_step(config, model, optimizer, None, "cpu"), donate_state=True)
  pixels = np.random.default_rng(0).integers(0, 256, (GLOBAL_BATCH, 8, 8, 3), np.uint8)
  x = pixels.repeat(8, 1).repeat(8, 2)
  losses = []
  for _ in range(config.num_steps):
    state, metrics = step(state, parallel.shard(x), None)
    losses.append(float(parallel.unreplicate(metrics)["loss"]))
  print(json.dumps(losses), flush=True)


if __name__ == "__main__":
  for number in sys.argv[2:]:
    if not (child := os.fork()):
      train(sys.argv[1], int(number))
      sys.exit()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
      sys.exit(f"the training on {number} devices failed")
