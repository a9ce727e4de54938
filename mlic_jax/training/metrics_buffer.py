"""Figures of the steps on their way to the host: vectors that stay on the devices until a row is written."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlic_jax.training.checkpoints import Checkpoints


class NonFiniteLoss(ArithmeticError):
  """The loss or a gradient became infinite or NaN; one line that names the step and the last good checkpoint."""
  status = 1


Vector = dict[tuple[str, ...], jax.Array]  # {names of the metrics: (metrics,)}, a single entry


def packed(train_step: Callable) -> Callable:
  """train_step with its metrics as one vector: (state, {names: vector}, flags of the processes)."""
  def step(*args):
    state, metrics = train_step(*args)
    stop = metrics.pop("stop")
    names = tuple(sorted(metrics))
    return state, {names: jnp.stack([metrics[name] for name in names])}, stop
  return step


class MetricRows:
  """The metrics of the steps since the last row; they come to the host in one transfer."""

  def __init__(self):
    self._names: tuple[str, ...] = ()
    self._pending: list[jax.Array] = []  # (local devices, metrics) a step

  def __len__(self) -> int:
    return len(self._pending)

  def add(self, metrics: Vector) -> None:
    """The metrics of the next step, (local devices, metrics)."""
    (self._names, vector), = metrics.items()
    self._pending.append(vector)

  def wait_for_all_but(self, steps: int) -> None:
    """Until at most `steps` - 1 steps are still being computed."""
    if len(self) >= steps:
      jax.block_until_ready(self._pending[-steps])

  def check(self, step: int, checkpoints: Checkpoints) -> np.ndarray:
    """The figures (steps, metrics) of the steps up to `step`, which stay; NonFiniteLoss when one is not finite."""
    table = np.asarray(jnp.stack([vector.addressable_shards[0].data for vector in self._pending]))
    table = table.reshape(len(self), -1)
    column = lambda name: table[:, self._names.index(name)]
    for i in np.flatnonzero(column("finite") == 0)[:1]:
      last = checkpoints.latest_step
      kept = "no checkpoint was saved yet" if last is None else (
          f"the last good checkpoint is step {last} in {checkpoints.directory}")
      raise NonFiniteLoss(f"loss or gradient not finite at step {step - len(table) + 1 + i} "
                          f"(loss {column('loss')[i]:g}, gradient norm {column('grad_norm')[i]:g}); {kept}")
    return table

  def take(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
    """Means over the steps since the last call, up to `step`; NonFiniteLoss as in `check`."""
    means = self.check(step, checkpoints).mean(0, dtype=np.float64)
    self._pending = []
    return dict({name: float(mean) for name, mean in zip(self._names, means) if name != "finite"}, step=step)
