"""The package is a house: lower floors never import higher ones. docs/design.md has the order."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlic_jax"


def floors() -> list[list[str]]:
  """The rows of the table in docs/design.md, from the ground up: names of files and folders of the package."""
  text = (ROOT / "docs" / "design.md").read_text().split("## The floors", 1)[1].split("\n## ", 1)[0]
  rows = [line for line in text.splitlines() if line.startswith("| `")]
  return [re.findall(r"`(\w+)(?:\.py|/)?`", row.split("|")[1]) for row in reversed(rows)]


def imported(file: Path) -> set[str]:
  """The names of the files and folders of the package that a file imports, anywhere in it."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
      modules = [f"{node.module}.{alias.name}" for alias in node.names]
    assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: a relative import"
    names |= {module.split(".")[1] for module in modules if module.startswith("mlic_jax.")}
  return names


def test_every_file_of_the_package_is_on_a_floor():
  known = {name for floor in floors() for name in floor}
  there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
  assert there - {"__init__"} == known


def test_lower_floors_never_import_higher_ones():
  number = {name: i for i, floor in enumerate(floors()) for name in floor}
  for file in PACKAGE.rglob("*.py"):
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here != "__init__":  # which loads what it is asked for
      above = [name for name in imported(file) if number[name] > number[here]]
      assert not above, f"{file.relative_to(ROOT)} imports {above}, which stand above it"


def test_no_two_files_of_the_package_have_one_name_and_none_is_long():
  files = [file for file in PACKAGE.rglob("*.py") if file.stem != "__init__"]
  assert max(len(file.read_text().splitlines()) for file in files) <= 350
  commands = {file.stem for file in files if file.parent.name == "commands"}  # named as what they run
  names = [file.stem for file in files if file.parent.name != "commands"]
  assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
  assert commands & set(names) <= {"describe", "batches"}
