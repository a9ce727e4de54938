"""Shared fixtures: a model that compiles in seconds, with weights that are created fast.

A test, or a fixture of tests, that needs TensorFlow says so by asking for `tfc` or `tensorflow`. It is skipped where
requirements/ leave the package out for this Python and machine, or where `make test-latest` leaves it out, and nowhere
else: a package that should be there and is not is a failure.
"""
import gc
import importlib
import importlib.util
import os
import platform
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile with few optimizations, in subprocesses too, because compilation takes most of their time. The fixture
# `as_shipped` is for tests of the exact bits that users get.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # lowering is faster without lines of Python
# To divide kernels among threads takes longer than to compile the few of a small program in one.
if (SPLIT := "--xla_cpu_parallel_codegen_split_count") not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SPLIT}=1".strip()

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement

from mlic_jax import folder_lock
from mlic_jax.config import CodecConfig
from mlic_jax.model.distributions import make_distribution
from mlic_jax.model.param_shapes import param_shapes

# Tracing creates millions of objects that stay; the default collection takes a tenth of the time of the tests.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

folder_lock.SETTLE = 0.02  # runs in the processes of the tests have their folders to themselves

TINY = CodecConfig(N=16, M=32, num_slices=2, channel_widths=(16, 16), entropy_widths=(16, 16), lrp_widths=(16, 16),
                   num_rates=3)

# The longest files, which start first if several processes share the tests.
LONG = ("test_multiprocess.py", "test_transforms.py", "test_contexts.py", "test_slices.py", "test_reference_parity.py",
        "test_compressai_parity.py", "test_lowering.py", "test_loop.py", "test_forward_mode.py",
        "test_entropy_model.py", "test_distributions.py", "test_step_semantics.py", "test_latent_optimization.py",
        "test_mlic.py", "test_runs_written_before.py")

REQUIREMENTS = Path(__file__).parents[1] / "requirements"


def pytest_addoption(parser):
  parser.addoption("--without-tensorflow", action="store_true", help="skip what needs TensorFlow, by name")


def pytest_configure(config):
  """Set up an empty cache, restore signals, and skip tests of TensorFlow only in environments without it.

  With the user's cache, tests would depend on what was compiled before. The processes of pytest-xdist inherit the empty
  one. Programs in the background of a shell, or under nohup, ignore Ctrl-C or SIGHUP, which some tests send."""
  if "MLIC_JAX_CACHE" not in os.environ:
    os.environ["MLIC_JAX_CACHE"] = folder = tempfile.mkdtemp(prefix="mlic_jax_tests_")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
  for signum, usual in (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL):
    if signal.getsignal(signum) is signal.SIG_IGN:
      signal.signal(signum, usual)
  names = "tensorflow", "tensorflow_compression_ops"
  if config.getoption("--without-tensorflow") and (here := [name for name in names if importlib.util.find_spec(name)]):
    raise pytest.UsageError(f"--without-tensorflow came where {', '.join(here)} can be imported")


def pytest_collection_modifyitems(items):
  # Files as shipped come first, because they free what files before them have compiled, which takes seconds.
  shipped = {item.path for item in items if "as_shipped" in item.fixturenames}
  order = {name: place for place, name in enumerate(LONG)}
  items.sort(key=lambda item: -1 if item.path in shipped else order.get(item.path.name, len(LONG)))


def pytest_sessionfinish():
  gc.freeze()  # otherwise pytest and the interpreter search all objects for garbage as they end, which takes seconds


def pytest_report_header():
  return ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy"))


@pytest.fixture(scope="session")
def tfc(request):
  """The module of the range coder with the ops of TensorFlow Compression."""
  _skip_without("tensorflow-compression-ops", request)
  return importlib.import_module("mlic_jax.coding.rangecoder_tfc")


@pytest.fixture(scope="session")
def tensorflow(request):
  """The package tensorflow, a dependency of the ops."""
  _skip_without("tensorflow-compression-ops", request)
  return importlib.import_module("tensorflow")


@pytest.fixture(scope="session")
def tfds():
  """The package tensorflow_datasets. Without TensorFlow it writes array_record, but not TFRecord."""
  return importlib.import_module("tensorflow_datasets")


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_compiler():
  """Refuse a file that leaves other optimizations behind, with which the files after it compile for longer."""
  yield
  few = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
  assert jax.config.values["jax_disable_most_optimizations"] == few, "wanted the optimizations from before this file"


@pytest.fixture(scope="module")
def as_shipped():
  """Compile with the optimizations that users get, in one file of tests."""
  jax.config.update("jax_disable_most_optimizations", False)
  jax.clear_caches()
  yield
  jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
  jax.clear_caches()


def _skip_without(package, request):
  if request.config.getoption("--without-tensorflow"):
    pytest.skip(f"{package} is missing (--without-tensorflow)")
  if package not in required_here():
    pytest.skip(f"{package} has no release for Python {platform.python_version()} on {platform.machine()}")


def required_here() -> set[str]:
  """Return the names of the packages in requirements/ for this Python and machine."""
  lines = [line for path in REQUIREMENTS.glob("*.txt") for line in path.read_text().splitlines()]
  found = [Requirement(line) for line in lines if line and not line.startswith("#")]
  return {each.name for each in found if each.marker is None or each.marker.evaluate()}


def random_variables(config: CodecConfig, seed: int = 0) -> dict:
  """Return random variables with y and predicted scales of order 1, which is much faster than `init`."""
  rng, outputs = np.random.default_rng(seed), make_distribution(config).outputs

  def fill(path, shape):
    *_, parent, name = [key.key for key in path]
    stacked = any(key.key == "steps" for key in path)
    if name == "kernel":
      value = rng.normal(size=shape) / np.sqrt(np.prod(shape[stacked:-1]))
    elif name == "bias" and "entropy" in path[-3].key and shape[-1] == outputs * config.slice_channels:
      value = np.broadcast_to(np.repeat([0.8, *[0] * (outputs - 1)], config.slice_channels), shape)  # scales, means
    elif name == "gamma":
      value = np.sqrt(0.1) * np.eye(shape[-1])
    elif name in ("beta", "scale"):
      value = np.ones(shape)
    elif name == "quantiles":
      value = np.tile([-10.0, 0.3, 10.0], (shape[0], 1))
    elif name.startswith("matrix"):
      value = np.full(shape, np.log(np.expm1(10**-0.2 / shape[1])))
    elif name.startswith(("bias", "factor")) and parent == "z_prior":
      value = rng.uniform(-0.4, 0.4, shape)
    elif name.endswith("gain"):
      sign = -1 if "inverse" in name else 1
      value = np.repeat(sign * np.linspace(-0.3, 0.3, config.num_rates)[:, None], config.M, axis=1)
    else:
      value = np.zeros(shape)
    return np.asarray(value, np.float32)

  # The shapes are those that a model is loaded with, which are traced once for a config.
  return jax.tree_util.tree_map_with_path(lambda path, leaf: fill(path, leaf.shape), dict(params=param_shapes(config)))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
  """The directory of a tiny variable-rate model with three rate points."""
  from mlic_jax.coding.checkpoint_io import save_model
  path = tmp_path_factory.mktemp("checkpoints") / "tiny"
  save_model(path, TINY, random_variables(TINY), training={"steps": 300})
  return path


@pytest.fixture(scope="session")
def photograph():
  """An image (65, 130, 3) uint8, smooth with some noise."""
  rng = np.random.default_rng(0)
  row, column = np.mgrid[:65, :130][..., None]
  waves = np.sin(row / [9, 14, 23] + 1) + np.cos(column / [17, 8, 12])
  return np.uint8(np.clip(128 + 50 * waves + rng.normal(0, 6, waves.shape), 0, 255))
