"""Executors for baselines and distortions: the main process, or a pool of processes on the same machine."""
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from mlic_jax.subprocess_signals import ignore_signals_in_children


class SerialExecutor(Executor):
  """Runs each function when it is submitted; for single cores and tests."""
  in_flight = 0                                          # maximum number of uncollected tasks

  def submit(self, function: Callable, /, *args, **kwargs) -> Future:
    future: Future = Future()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as error:  # the future raises it for the caller, as with a process pool
      future.set_exception(error)
    return future


class WorkerPool(ProcessPoolExecutor):
  """A pool of `number` processes that compute on the CPU, because the codec uses the accelerator."""

  def __init__(self, number: int):
    # JAX has threads, and a forked process would hang.
    super().__init__(number, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    self.in_flight = 4 * number                          # keeps all processes busy, and fits into memory

  def submit(self, *args, **kwargs) -> Future:
    with ignore_signals_in_children():                                # the first call starts the processes
      return super().submit(*args, **kwargs)


def _prepare_worker() -> None:
  threading.Thread(target=_end_with_parent, daemon=True).start()
  import jax
  jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
  """Ends this process when its parent has ended, also after the parent was killed."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
