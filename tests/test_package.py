"""The package: what is in a wheel, and that its programs work where the repository is not."""
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.forked_programs import Program, run_forks

from mlic_jax import __version__, evaluation
from mlic_jax.__main__ import main_of_one_command
from mlic_jax.data.image_io import load_image, save_image
from mlic_jax.errors import ConfigError
from mlic_jax.training import config_registry
from mlic_jax.training.config_schema import load_config

ROOT = Path(__file__).parents[1]


def test_configurations_that_come_along_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "nano.py").write_text("raise RuntimeError('not this one')")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  assert load_config("mlic_plus_plus:ms_ssim:2").lmbda == 8.73
  assert load_config("nano", ["--config.seed=7"]).seed == 7
  assert load_config("ablations/01_channel").model.contexts == ("channel",)
  with pytest.raises(ConfigError, match="not this one"):
    load_config("configs/nano.py")
  with pytest.raises(ConfigError, match="^nanno: no such config file; wanted .*mlic_plus_plus, .*nano, "):
    load_config("nanno")


@pytest.mark.parametrize("regular", [True, False])
def test_another_package_named_configs_does_not_shadow_the_projects(tmp_path, regular):
  """The user's package is on the path, with and without __init__.py, and has no file that the project's import."""
  (tmp_path / "configs").mkdir()
  if regular:
    (tmp_path / "configs" / "__init__.py").touch()
  (tmp_path / "configs" / "mine.py").write_text("from configs import theirs\nget_config = theirs.get_config")
  (tmp_path / "configs" / "theirs.py").write_text(
      "from mlic_jax.training.config_schema import load_config\ndef get_config(): return load_config('nano')")
  code = ("import sys; from mlic_jax.training.config_schema import load_config\n"
          "for config in sys.argv[1:]: assert load_config(config).seed == 0")
  theirs, mine = [f"{ROOT}/configs/ablations/01_channel.py", "mlic_plus_plus:mse:3"], ["configs/mine.py"]
  programs = [Program(code, configs) for configs in (theirs, mine)]
  for done in run_forks("import mlic_jax.training.config_schema", programs, tmp_path):
    assert done.status == 0, done.stderr


def test_a_config_elsewhere_can_start_from_one_of_the_projects(tmp_path):
  """The package alone is on the path, as where it is installed."""
  (tmp_path / "site").mkdir()
  (tmp_path / "site" / "mlic_jax").symlink_to(ROOT / "mlic_jax")
  (tmp_path / "mine.py").write_text("from configs import nano\ndef get_config(): return nano.get_config()")
  code = "from mlic_jax.training.config_schema import load_config; assert load_config('mine.py').seed == 0"
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True,
                 env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(tmp_path / "site")))


def test_every_configuration_of_the_repository_is_listed_without_the_files_that_others_start_from():
  files = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.py")}
  listed = {f"{name}.py" for name in config_registry.names()}
  assert listed < files and {Path(file).name for file in files - listed} == {"common.py"}


def test_an_extra_that_is_missing_is_one_line_that_names_it(monkeypatch, capsys):
  for name in "session", "plots", "matplotlib_settings":  # where another test has imported them
    monkeypatch.delitem(sys.modules, f"mlic_jax.evaluation.{name}", raising=False)
    monkeypatch.delattr(evaluation, name, raising=False)
  monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
  assert main_of_one_command("eval", "eval.py", ["--ckpt", "x"]) == 2
  assert capsys.readouterr().err == "eval.py: matplotlib is not installed; it comes with pip install 'mlic_jax[eval]'\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """(program, *arguments) -> stdout, of a wheel in an environment of its own, run in an empty folder.

  The environment sees the packages that are installed here, and not the repository.
  """
  folder = tmp_path_factory.mktemp("package")
  shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "checkpoints", "out", "runs", "tests"))
  subprocess.run([sys.executable, "-m", "build", "--outdir", folder, folder / "source"], check=True)
  [wheel] = folder.glob("*.whl")
  venv.create(folder / "env")
  python = folder / "env" / "bin" / "python"
  [site] = (folder / "env").glob("lib/*/site-packages")
  (site / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
  subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel], check=True)
  (folder / "elsewhere").mkdir()
  env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

  def run(program, *arguments):
    done = subprocess.run([folder / "env" / "bin" / program, *map(str, arguments)], cwd=folder / "elsewhere", env=env,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout
  run.wheel, run.folder = wheel, folder / "elsewhere"
  return run


@pytest.mark.slow
def test_a_wheel_holds_what_the_programs_read(installed):
  names = zipfile.ZipFile(installed.wheel).namelist()
  data = [path for folder in ("published", "report") for path in (ROOT / "mlic_jax/evaluation" / folder).iterdir()]
  assert {path.relative_to(ROOT).as_posix() for path in data} <= set(names)
  files = (path.relative_to(ROOT).as_posix() for path in config_registry.FOLDER.rglob("*.py"))
  assert {f"mlic_jax/packaged/{file}" for file in files} <= set(names)
  modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mlic_jax").rglob("*.py")}
  assert modules <= set(names) and not any(name.startswith(("tests", "configs")) for name in names)
  assert any(name.endswith("licenses/LICENSE") for name in names)
  assert "mlic_jax/py.typed" in names  # or type checkers ignore the annotations


OWN_CONFIG = """
from mlic_jax.training.config_schema import load_config

def get_config():
  c = load_config("nano")
  c.model.update(dict(N=16, M=16, num_slices=1, contexts=(), entropy_widths=(16,), lrp_widths=(), num_rates=2))
  c.data_dir = c.eval_dir = "photos"
  c.lmbdas, c.crop_size, c.eval_crop_size, c.eval_images, c.batch_size = (0.01, 0.02), 64, 64, 0, 2
  c.num_steps, c.warmup_steps, c.partial_probability, c.optimizer = 2, 1, 0.0, "adam"
  return c
"""


@pytest.mark.slow
def test_an_installed_package_codes_evaluates_describes_and_trains(installed, tiny_checkpoint, photograph):
  folder = installed.folder
  (folder / "photos").mkdir()
  for name in "a", "b":
    save_image(folder / "photos" / f"{name}.png", photograph)
  assert installed("mlic-jax", "--version") == f"mlic_jax {__version__}\n"
  installed("mlic-jax", "encode", "photos/a.png", "a.mlic", "--ckpt", tiny_checkpoint)
  installed("mlic-jax", "decode", "a.mlic", "a.png", "--ckpt", tiny_checkpoint)
  assert load_image(folder / "a.png").shape == photograph.shape
  installed("mlic-jax", "eval", "--ckpt", tiny_checkpoint, "--data", "photos", "--limit", 1, "--qualities", 2,
            "--baselines", "jpeg", "--published", "kodak", "--out", "out")
  assert "MLIC++" in (folder / "out" / "report.html").read_text()
  assert "mlic_plus_plus:mse:3" in installed("mlic-jax", "describe", "--config", "mlic_plus_plus:mse:3")
  (folder / "own.py").write_text(OWN_CONFIG)
  installed("mlic-jax", "train", "--config", "own.py", "--workdir", "run")
  installed("mlic-jax", "encode", "photos/b.png", "b.mlic", "--ckpt", "run")
