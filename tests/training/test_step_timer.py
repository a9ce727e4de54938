"""Tests that the speed of a run covers only its steps."""
import time
from pathlib import Path

from helpers.small_training import rows, small_config, standin_compiled_once  # noqa: F401 (fixtures)
from PIL import Image

from mlic_jax.training import loop
from mlic_jax.training.step_timer import StepTimer


def test_time_that_is_paused_and_steps_that_are_not_counted_do_not_change_the_speed(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])

  def passes(seconds):
    now[0] += seconds

  timer = StepTimer()
  with timer.paused():                                   # compilation, in a step that is not counted
    passes(60)
  assert timer.take(8) == {}
  for _ in range(4):
    with timer.waiting():
      passes(0.5)
    passes(1.5)
    timer.count()
  with timer.paused():                                   # an evaluation
    passes(30)
  assert timer.take(8) == {"seconds_per_step": 2.0, "images_per_second": 4.0, "data_wait_share": 0.25}
  assert timer.take(8) == {}


def test_a_log_line_gives_no_speed_where_every_step_of_it_compiled(config, standin, tmp_path, capsys):
  for path in Path(config.data_dir).iterdir():
    Image.effect_noise((144, 136), 40).convert("RGB").save(path)
  config.log_every, config.num_steps, config.crop_schedule = 1, 6, ((4, 128),)
  config.crop_size, config.downscale_probability = 64, 0.0
  loop.train_and_evaluate(config, tmp_path / "run")
  speeds = {int(row["step"]): row["images_per_second"] for row in rows(tmp_path / "run" / "metrics.csv")}
  lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
  without = [step for step, speed in speeds.items() if not speed]
  assert len(lines) == len(speeds) == 6 and without[0] == 1 and len(without) == 2     # of two crop sizes
  assert [i + 1 for i, line in enumerate(lines) if "images/s" not in line and "left" not in line] == without
