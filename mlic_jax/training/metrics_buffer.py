"""A buffer for the metrics of training steps: vectors stay on the devices until a row of the log is written."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.training.checkpoints import Checkpoints


class NonFiniteLoss(ArithmeticError):
  """The loss or a gradient is infinite or NaN; the message names the step and the last good checkpoint in one line."""
  status = 1


Vector = dict[tuple[str, ...], jax.Array]  # {names of the metrics: (metrics,)}, a single entry


def pack_metrics(train_step: Callable) -> Callable:
  """Wraps train_step so that it returns its metrics as one vector: (state, {names: vector}, flags of the processes)."""
  def step(*args):
    state, metrics = train_step(*args)
    stop = metrics.pop("stop")
    names = tuple(sorted(metrics))
    return state, {names: jnp.stack([metrics[name] for name in names])}, stop
  return step


class MetricsBuffer:
  """The metrics of the steps since the last row of the log; one transfer copies them to the host."""

  def __init__(self):
    self._names: tuple[str, ...] = ()
    self._pending: list[jax.Array] = []  # (local devices, metrics) for each step

  def __len__(self) -> int:
    return len(self._pending)

  def add(self, metrics: Vector) -> None:
    """Adds the metrics of the next step, (local devices, metrics)."""
    (self._names, vector), = metrics.items()
    self._pending.append(vector)

  def wait_for_all_but(self, steps: int) -> None:
    """Waits until at most `steps` - 1 steps are still being computed."""
    if len(self) >= steps:
      jax.block_until_ready(self._pending[-steps])

  def check(self, step: int, checkpoints: Checkpoints) -> np.ndarray:
    """Returns the metrics (steps, metrics) of the buffered steps up to `step`. NonFiniteLoss if one is not finite."""
    table = np.asarray(jnp.stack([vector.addressable_shards[0].data for vector in self._pending]))
    table = table.reshape(len(self), -1)
    column = lambda name: table[:, self._names.index(name)]
    for i in np.flatnonzero(column("finite") == 0)[:1]:
      last = checkpoints.latest_step
      saved = "no checkpoint was saved yet" if last is None else (
          f"the last good checkpoint is step {last} in {checkpoints.directory}")
      raise NonFiniteLoss(f"loss or gradient not finite at step {step - len(table) + 1 + i} "
                          f"(loss {column('loss')[i]:g}, gradient norm {column('grad_norm')[i]:g}); {saved}")
    return table

  def take(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Empties the buffer; returns the means over its steps, up to `step`. NonFiniteLoss as in `check`."""
    means = self.check(step, checkpoints).mean(0, dtype=np.float64)
    self._pending = []
    return dict({name: float(mean) for name, mean in zip(self._names, means) if name != "finite"}, step=step)
