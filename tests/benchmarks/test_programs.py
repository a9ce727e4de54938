"""Tests of what all benchmarks have in common."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_the_package_of_its_checkout_from_any_folder(path):
  on_path = False
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      modules = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
      assert on_path or not any(module.startswith(("mlic_jax", "configs")) for module in modules)
    on_path = on_path or ast.unparse(node) == "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))"
