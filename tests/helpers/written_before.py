"""Access to tests/fixtures/written_before: a model directory, a run and .mlic files that an earlier commit wrote."""
import json
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "fixtures" / "written_before"
FILES = json.loads((FOLDER / "files.json").read_text())


def unpack(name: str, folder: Path) -> Path:
  """Extracts the model directory or run NAME.tar.xz into a folder, and returns its path."""
  with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder / name
