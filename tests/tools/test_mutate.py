"""Tests of the mutation tool, on a package with one function, and of the list of mutations."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import mutate  # noqa: E402

LIST = mutate.read_mutations(ROOT / "tools" / "mutations.toml")

CLAIMS = """
from package.scaled import double

def test_two_becomes_four():
  assert double(2) == 4
"""


@pytest.mark.parametrize("mutation", LIST, ids=lambda each: each.name)
def test_a_mutation_of_the_list_still_applies_and_names_tests_that_exist(mutation):
  mutation.mutated(ROOT)
  assert mutation.test_runs(ROOT)
  for test in mutation.tests:
    file, *names = test.split("[")[0].split("::")
    assert (ROOT / file).exists(), test
    assert all(f"def {name}(" in (ROOT / file).read_text() for name in names), test


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """(list of (name, old, new, tests)) -> the root of a repository with a package, its test, and those mutations."""
  monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # which takes most of the time
  files = {"package/__init__.py": "", "package/scaled.py": "def double(x):\n  return x + x\n",
           "tests/test_scaled.py": CLAIMS, "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n'}
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  subprocess.run(["git", "init", "-q", tmp_path], check=True)

  def write(*mutations):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "mutations.toml").write_text("".join(
      f'[[mutation]]\nname = "{name}"\nfile = "package/scaled.py"\nold = "{old}"\nnew = "{new}"\ntests = {tests}\n'
      for name, old, new, tests in mutations))
    return str(tmp_path)
  return write


def test_each_mutation_is_listed_with_the_test_that_fails_and_survivors_fail_the_run(repository, capsys):
  root = repository(("triple", "x + x", "x * 3", []), ("square", "x + x", "x * x", ["tests/test_scaled.py"]))
  assert mutate.main(["--root", root, "--jobs", "2"]) == 1
  assert capsys.readouterr().out.splitlines() == [
    "triple  tests/test_scaled.py::test_two_becomes_four", "square  SURVIVED", "1 of 2 mutations caught"]
  assert mutate.main(["--root", root, "trip*"]) == 0
  assert (Path(root) / "package" / "scaled.py").read_text().endswith("x + x\n")


@pytest.mark.parametrize("old, new, tests, message", [
  ("y - y", "0", [], "square: 'y - y' occurs 0 times in package/scaled.py; wanted exactly one"),
  ("x", "y", [], "square: 'x' occurs 3 times in package/scaled.py; wanted exactly one"),
  ("x + x", "x + x", [], "square: old and new are the same text"),
  ("x + x", "x +", [], r"square: package/scaled.py is not valid Python with 'x \+'"),
  ("x + x", "x * 3", ["tests/test_absent.py"], "(?s)pytest tests/test_absent.py ended with 4:.*not found"),
])
def test_a_mutation_that_says_nothing_about_the_tests_is_refused(repository, capsys, old, new, tests, message):
  assert mutate.main(["--root", repository(("square", old, new, tests))]) == 2
  assert re.search(message, capsys.readouterr().err)


def test_a_mutation_of_a_file_that_was_renamed_is_refused(repository, tmp_path, capsys):
  root = repository(("square", "x + x", "x * x", []))
  (tmp_path / "package" / "scaled.py").rename(tmp_path / "package" / "doubled.py")
  assert mutate.main(["--root", root]) == 2
  assert capsys.readouterr().err == "mutate.py: square: there is no file package/scaled.py\n"


def test_a_test_that_fails_without_the_mutation_catches_nothing(repository, tmp_path, capsys):
  root = repository(("square", "x + x", "x * x", []))
  (tmp_path / "tests" / "test_scaled.py").write_text("def test_wrong():\n  assert False\n")
  assert mutate.main(["--root", root]) == 2
  assert capsys.readouterr().err == ("mutate.py: square: tests/test_scaled.py::test_wrong also fails without the "
                                     "mutation\n")
