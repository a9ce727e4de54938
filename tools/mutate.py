"""Mutation tests: applies each fault of tools/mutations.toml to a copy of the tree, and runs the tests that catch it.

    python tools/mutate.py                             every mutation
    python tools/mutate.py adam_eps eval_no_clip       these two
    python tools/mutate.py 'muon_*' --jobs 2           those that match, two at a time

It prints a line for each mutation with the test that failed, or SURVIVED. The exit status is 1 if any mutation
survived, and 2 if the list is invalid or a test also fails without its mutation. The copy has tracked files and
untracked files that git does not ignore, so changes need no commit. (mutmut and cosmic-ray generate all mutants from
their own operators, thousands for this package, and do not accept a list.)
"""
import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
  import tomllib
else:
  import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TESTS_FAILED = 1  # exit status of pytest; others are usage errors, collection errors and interruptions


class MutationError(Exception):
  """The list of mutations is invalid, or the tests that it names cannot be used."""


@dataclasses.dataclass(frozen=True)
class Mutation:
  """One fault; tools/mutations.toml describes the fields."""
  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...] = ()

  def test_runs(self, root: Path) -> list[tuple[str, ...]]:
    """Returns the arguments of pytest runs, in the order in which they are tried until one fails."""
    if self.tests:
      return [self.tests]
    folder = Path("tests", *Path(self.file).parent.parts[1:])
    while not (root / folder).is_dir():
      folder = folder.parent
    mirrored = folder / f"test_{Path(self.file).stem}.py"
    return [(path.as_posix(),) for path in (mirrored, folder) if (root / path).exists()]

  def mutated(self, root: Path) -> str:
    """Returns the text of the file below `root` with the fault."""
    if not (root / self.file).is_file():
      raise MutationError(f"{self.name}: there is no file {self.file}")
    text = (root / self.file).read_text()
    if (count := text.count(self.old)) != 1:
      raise MutationError(f"{self.name}: {self.old!r} occurs {count} times in {self.file}; wanted exactly one")
    if self.old == self.new:
      raise MutationError(f"{self.name}: old and new are the same text")
    changed = text.replace(self.old, self.new)
    try:
      ast.parse(changed)
    except SyntaxError as error:
      raise MutationError(f"{self.name}: {self.file} is not valid Python with {self.new!r} ({error})") from error
    return changed


def read_mutations(file: Path) -> list[Mutation]:
  """Reads the mutations of a TOML file, in its order."""
  found = []
  for entry in tomllib.loads(file.read_text())["mutation"]:
    try:
      found.append(Mutation(**entry | {"tests": tuple(entry.get("tests", ()))}))
    except TypeError as error:
      raise MutationError(f"{file.name}: {entry.get('name')}: {error}") from error
  names = [each.name for each in found]
  if repeated := sorted({name for name in names if names.count(name) > 1}):
    raise MutationError(f"{file.name}: {', '.join(repeated)} occurs more than once")
  return found


def select(mutations: Sequence[Mutation], patterns: Sequence[str]) -> list[Mutation]:
  """Returns the mutations whose names match one of the patterns, or all of them without patterns."""
  for pattern in patterns:
    if not fnmatch.filter([each.name for each in mutations], pattern):
      raise MutationError(f"no mutation is named {pattern}; wanted one of {', '.join(each.name for each in mutations)}")
  return [each for each in mutations if not patterns or any(fnmatch.fnmatch(each.name, p) for p in patterns)]


def copy_tree(root: Path, target: Path) -> None:
  """Copies the tracked files in `root`, and untracked files that git does not ignore."""
  listed = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                          check=True, capture_output=True).stdout
  for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
    if (root / name).is_file():  # a tracked file may have been deleted
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(root / name, target / name)


def first_failure(tree: Path, tests: Sequence[str], timeout: float) -> tuple[str, ...] | None:
  """Returns the first test that fails in `tree`; all tests if they exceed the timeout; None if they pass."""
  command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", "--tb=no", *tests]
  environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # Python reuses bytecode for equal size and mtime
  try:
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout)
  except subprocess.TimeoutExpired:
    return tuple(tests)
  if done.returncode == 0:
    return None
  failed = [line.split(" ", 1)[1].split(" - ")[0] for line in done.stdout.splitlines()
            if line.startswith(("FAILED ", "ERROR "))]
  if done.returncode != TESTS_FAILED or not failed:
    raise MutationError(f"pytest {' '.join(tests)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
  return (failed[0],)


def catching_tests(mutation: Mutation, tree: Path, timeout: float) -> tuple[str, ...] | None:
  """Returns the test that fails with `mutation` in `tree` and passes without it; None if the mutation survives.

  It restores the tree."""
  file = tree / mutation.file
  original = file.read_text()
  file.write_text(mutation.mutated(tree))
  try:
    runs = mutation.test_runs(tree)
    failed = next(filter(None, (first_failure(tree, tests, timeout) for tests in runs)), None)
  finally:
    file.write_text(original)
  if failed and first_failure(tree, failed, timeout):
    raise MutationError(f"{mutation.name}: {' '.join(failed)} also fails without the mutation")
  return failed


@contextlib.contextmanager
def tree_pool(root: Path, count: int) -> Iterator[queue.SimpleQueue]:
  """Makes a queue of `count` temporary copies of the tree."""
  with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
    trees: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(count):
      copy_tree(root, Path(folder, str(i)))
      trees.put(Path(folder, str(i)))
    yield trees


def run(root: Path, mutations: Sequence[Mutation], jobs: int, timeout: float) -> bool:
  """Tests the mutations and prints a line for each; returns whether all were caught."""
  for each in mutations:
    each.mutated(root)  # refuses an invalid list before anything runs
  with tree_pool(root, jobs) as trees, concurrent.futures.ThreadPoolExecutor(jobs) as pool:

    def in_a_tree(mutation: Mutation) -> tuple[str, ...] | None:
      tree = trees.get()
      try:
        return catching_tests(mutation, tree, timeout)
      finally:
        trees.put(tree)

    width, survivors = max(len(each.name) for each in mutations), 0
    for mutation, tests in zip(mutations, pool.map(in_a_tree, mutations), strict=True):
      survivors += tests is None
      print(f"{mutation.name:{width}}  {' '.join(tests or ['SURVIVED'])}", flush=True)
  print(f"{len(mutations) - survivors} of {len(mutations)} mutations caught")
  return not survivors


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("names", nargs="*", metavar="NAME",
                      help="Names of mutations; * stands for any characters. Default: all.")
  parser.add_argument("--root", type=Path, default=ROOT, help="The tree to copy. Default: this repository.")
  parser.add_argument("--list", type=Path, dest="file",
                      help="The file of mutations. Default: tools/mutations.toml below the root.")
  parser.add_argument("--jobs", type=int, default=1, help="How many mutations to test at once. Default: 1.")
  parser.add_argument("--timeout", type=float, default=1800,
                      help="Seconds for one run of pytest; more count as caught. Default: 1800.")
  options = parser.parse_args(arguments)
  try:
    mutations = select(read_mutations(options.file or options.root / "tools/mutations.toml"), options.names)
    return 0 if run(options.root, mutations, options.jobs, options.timeout) else 1
  except MutationError as error:
    print(f"mutate.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
