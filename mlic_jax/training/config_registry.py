"""The configurations that come along, by name: configs/ in the repository, mlic_jax/packaged/configs once installed."""
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE / "packaged" if (_PACKAGE / "packaged").is_dir() else _PACKAGE.parent  # has configs/


def names() -> list[str]:
  """"nano", "mlic_plus_plus", ..., "ablations/row0_hyperprior", ..."""
  folder = ROOT / "configs"
  return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.py"))


def path(name: str) -> Path | None:
  """The file of a name; None if there is none."""
  return ROOT / "configs" / f"{name}.py" if name in names() else None


@contextlib.contextmanager
def importable() -> Iterator[None]:
  """Meanwhile, `from configs import nano` finds those that come along, whatever else is called so."""
  ours = lambda: [each for each in sys.modules if each.split(".")[0] == "configs"]
  others = {each: sys.modules.pop(each) for each in ours()}
  sys.path.insert(0, str(ROOT))
  try:
    yield
  finally:
    sys.path.remove(str(ROOT))
    for each in ours():
      del sys.modules[each]
    sys.modules.update(others)
