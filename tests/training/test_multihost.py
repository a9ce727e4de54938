"""Tests of the code for several processes, in one process; test_multiprocess.py starts several."""
import os
import socket
import subprocess
import sys

import jax
import pytest

from mlic_jax.errors import ConfigError
from mlic_jax.training import multihost
from mlic_jax.training.multihost import OtherProcessFailed, Processes, StartMismatch

STORE = """
import jax
from jax._src import distributed
jax.distributed.initialize("localhost:{port}", 1, 0)
state = distributed.global_state
assert (state.process_id, state.num_processes) == (0, 1)
state.client.key_value_set("a/0", "first")
state.client.key_value_set("a/0", "second", allow_overwrite=True)
assert state.client.blocking_key_value_get("a/0", 1000) == "second"
assert [tuple(each) for each in state.client.key_value_dir_get("a/")] == [("a/0", "second")]
"""


def test_the_installed_jax_has_the_private_key_value_store_that_multihost_uses():
  """JAX does not document the store. This test fails with the first release without it."""
  with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
  done = subprocess.run([sys.executable, "-c", STORE.format(port=port)], capture_output=True, text=True,
                        env=dict(os.environ, JAX_PLATFORMS="cpu"), timeout=120)
  assert done.returncode == 0, f"jax {jax.__version__} has another jax._src.distributed: {done.stderr}"


class Store:
  """A fake key-value store in which the other process, number 1, has set every key to `value`."""

  def __init__(self, value):
    self.value, self.own = value, {}

  def key_value_set(self, key, value, allow_overwrite=False):
    self.own[key] = value

  def blocking_key_value_get(self, key, _):
    return self.own.get(key, self.value)


@pytest.fixture(name="processes")
def first_of_two(monkeypatch):
  """Two processes, of which this one is the first; `said` sets the message of the other one."""
  monkeypatch.setattr(multihost.distributed, "global_state", type("State", (), dict(
      process_id=0, num_processes=2, client=Store("null"))))
  processes = Processes(timeout=10.0)

  def said(json):
    processes._client.value = json
  processes.said = said
  return processes


def test_an_exchange_has_the_values_of_all_processes_in_order(processes):
  processes.said('{"step": 3}')
  assert processes.exchange("topic", {"step": 2}) == [{"step": 2}, {"step": 3}]


def test_work_that_fails_elsewhere_ends_this_process_with_the_reason(processes):
  processes.said('"no such folder"')
  with pytest.raises(OtherProcessFailed, match="^process 1 of 2 cannot start: no such folder$"):
    processes.run_in_all(lambda: 5)
  processes.said("null")
  assert processes.run_in_all(lambda: 5) == 5


def test_work_that_fails_here_raises_its_own_error(processes):
  def fail():
    raise ConfigError("mine")
  with pytest.raises(ConfigError, match="^mine$"):
    processes.run_in_all(fail)


def test_processes_that_start_differently_name_both_sides(processes):
  processes.host = "here"
  processes.said('["there", {"seed": 2, "step": 5}]')
  with pytest.raises(StartMismatch, match=r"seed is 1 on process 0 \(here\) and 2 on process 1 \(there\); wanted"):
    processes.check_same({"seed": 1, "step": 5})
  processes.said('["there", {"seed": 1, "step": 5}]')
  processes.check_same({"seed": 1, "step": 5})
