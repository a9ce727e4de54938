"""Imports point one way: docs/design.md lists the layers of the package, and no module imports in a circle."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlic_jax"


def layers() -> list[list[str]]:
  """The rows of the table in docs/design.md, lowest layer first: names of files and folders of the package."""
  text = (ROOT / "docs" / "design.md").read_text().split("## Import layers", 1)[1].split("\n## ", 1)[0]
  rows = [line for line in text.splitlines() if line.startswith("| `")]
  return [re.findall(r"`(\w+)(?:\.py|/)?`", row.split("|")[1]) for row in reversed(rows)]


def imported_names(file: Path) -> set[str]:
  """Dotted names of the package that a file imports, anywhere in it."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and not node.level:
      found = [f"{node.module}.{alias.name}" for alias in node.names]
    assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: a relative import"
    names |= {name for name in found if name.startswith("mlic_jax.")}
  return names


def module_name(file: Path) -> str:
  return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
  """{module: modules of the package that it imports}, lazy imports in functions included."""
  modules = {module_name(file) for file in PACKAGE.rglob("*.py")}
  graph = {}
  for file in PACKAGE.rglob("*.py"):
    targets = set()
    for name in imported_names(file):
      targets.add(name if name in modules else name.rpartition(".")[0])
    graph[module_name(file)] = targets & modules - {module_name(file)}
  return graph


def test_every_file_of_the_package_is_in_a_layer():
  known = {name for layer in layers() for name in layer}
  there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
  assert there - {"__init__"} == known


def test_lower_layers_never_import_higher_ones():
  number = {name: i for i, layer in enumerate(layers()) for name in layer}
  for file in PACKAGE.rglob("*.py"):
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here != "__init__":  # which loads what it is asked for
      names = {name.split(".")[1] for name in imported_names(file)}
      above = [name for name in names if number[name] > number[here]]
      assert not above, f"{file.relative_to(ROOT)} imports {above}, which are in higher layers"


def test_no_modules_import_each_other_in_a_circle():
  graph, done = import_graph(), set()

  def visit(module, path):
    assert module not in path, f"a circle: {' -> '.join([*path[path.index(module):], module])}"
    if module not in done:
      for target in graph[module]:
        visit(target, [*path, module])
      done.add(module)

  for module in graph:
    visit(module, [])


def test_no_two_files_of_the_package_have_one_name_and_none_is_long():
  files = [file for file in PACKAGE.rglob("*.py") if file.stem != "__init__"]
  assert max(len(file.read_text().splitlines()) for file in files) <= 350
  commands = {file.stem for file in files if file.parent.name == "commands"}  # named as what they run
  names = [file.stem for file in files if file.parent.name != "commands"]
  assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
  assert not commands & set(names)
