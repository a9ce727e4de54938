"""Configs of this project by name: configs/ in the repository, mlic_jax/packaged/configs once installed."""
import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE / "packaged" if (_PACKAGE / "packaged").is_dir() else _PACKAGE.parent  # the folder above configs/
FOLDER = ROOT / "configs"


def names() -> list[str]:
  """Returns the names "nano", "mlic_plus_plus", "ablations/00_hyperprior" and so on.

  Files named common.py have fields that other configs share; they are left out."""
  return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("[!_]*.py")
                if path.name != "common.py")


def path(name: str) -> Path | None:
  """Returns the file of a config, None if there is no such config."""
  return FOLDER / f"{name}.py" if name in names() else None


@contextlib.contextmanager
def imports_from_project() -> Iterator[None]:
  """Within this context `from configs import nano` imports this project's file, even if the user has such a package.

  The imported modules are removed from sys.modules afterwards."""
  # A list, because other threads may import at the same time.
  loaded = lambda: [name for name in list(sys.modules) if name.split(".")[0] == "configs"]
  others = {name: sys.modules.pop(name) for name in loaded()}
  package = types.ModuleType("configs")
  package.__path__ = [str(FOLDER)]  # instead of a search of sys.path, where a package with __init__.py would win
  sys.modules["configs"] = package
  try:
    yield
  finally:
    for name in loaded():
      del sys.modules[name]
    sys.modules.update(others)


@contextlib.contextmanager
def imports_from_project_last() -> Iterator[None]:
  """Within this context `from configs import nano` imports this project's file unless sys.path has another one."""
  sys.path.append(str(ROOT))
  try:
    yield
  finally:
    sys.path.reverse()
    sys.path.remove(str(ROOT))  # removes the last occurrence
    sys.path.reverse()
