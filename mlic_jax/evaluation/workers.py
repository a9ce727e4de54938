"""Executors for baselines and distortions: this process, or several processes on the same machine."""
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from mlic_jax.subprocess_signals import ignore_signals_in_children


class InThisProcess(Executor):
  """Runs each function when it is submitted; for one core, and for tests."""
  in_flight = 0                                          # tasks that may wait to be collected

  def submit(self, function: Callable, /, *args, **kwargs) -> Future:
    future: Future = Future()
    try:
      future.set_result(function(*args, **kwargs))
    except Exception as error:  # whatever it is, the future hands it to the one who waits, as a process pool does
      future.set_exception(error)
    return future


class Processes(ProcessPoolExecutor):
  """`number` processes, which compute on the CPU: the accelerator belongs to the codec."""

  def __init__(self, number: int):
    # Not forked: JAX has threads, and a forked copy of them hangs.
    super().__init__(number, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    self.in_flight = 4 * number                          # enough that no process waits, few enough to fit into memory

  def submit(self, *args, **kwargs) -> Future:
    with ignore_signals_in_children():                                # the first call starts the processes
      return super().submit(*args, **kwargs)


def _prepare_worker() -> None:
  threading.Thread(target=_end_with_parent, daemon=True).start()
  import jax
  jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
  """Ends this process when the one that started it is gone, also when that was killed and could not end it."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
