"""The workflows run what the Makefile has, on the Pythons that the package names."""
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKFLOWS = "".join(path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")))
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))


def test_every_target_that_a_workflow_or_a_document_names_exists():
  documents = [path.read_text() for path in (ROOT / "CONTRIBUTING.md", ROOT / "README.md", *ROOT.glob("docs/*.md"))]
  named = {name for text in (WORKFLOWS, *documents) for name in re.findall(r"(?<![\w-])make ([a-z][\w-]*)", text)
           if f"`make {name}" in text or f"run: make {name}" in text}
  named |= set(re.findall(r"^ +- (test-[\w-]+)", WORKFLOWS, re.M))
  assert len(named) > 8 and named <= TARGETS


def test_the_workflows_run_every_kind_of_test_that_there_is():
  ran = set(re.findall(r"run: make ([\w-]+)", WORKFLOWS)) | set(re.findall(r"^ +- (test-[\w-]+)", WORKFLOWS, re.M))
  assert {name for name in TARGETS if name.startswith("test")} | {"mutate", "docs", "wheel"} <= ran


def test_the_suite_runs_on_every_python_of_the_classifiers():
  versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
  assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", WORKFLOWS)[1]) == versions


def test_continuous_integration_runs_what_a_developer_runs():
  assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")
