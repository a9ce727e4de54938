"""The documents are short, their links and file names lead to files, and they quote errors as users see them."""
import importlib.util
import re
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_jax import __main__ as program
from mlic_jax.coding import bitstream, memory_estimate, portable_cdf
from mlic_jax.config import CodecConfig
from mlic_jax.errors import for_the_user
from mlic_jax.training.config_schema import load_config
from mlic_jax.training.parallel import check_batch_size

ROOT = Path(__file__).parents[1]
FILES = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                       capture_output=True, check=True).stdout.split("\n")[:-1]
DOCUMENTS = [name for name in FILES if name.endswith(".md") and not name.startswith("tests/fixtures/")]
PROSE_MAX = 110
FOLDERS = "mlic_jax|tests|tools|benchmarks|configs|docs|checkpoints|requirements"
# Files of a reader, and of other projects.
EXAMPLES = {"mine.py", "my_package/four_neighbors.py", "my_package/secant.py", "my_package/absolute.py",
            "examples/train.py"}
WRITTEN_BEFORE = ROOT / "tests" / "fixtures" / "written_before"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files of a git checkout are listed by git")


def without_code(text: str) -> str:
  """The lines of a document, with code blocks left empty: fenced ones, and those that are indented."""
  lines, fenced, before = [], False, ""
  for line in text.splitlines():
    is_fence = line.lstrip().startswith("```")
    indented = line.startswith("    ") and (not before.strip() or before.startswith("    "))
    lines.append("" if fenced or is_fence or indented else line)
    fenced, before = fenced ^ is_fence, line
  return "\n".join(lines)


def anchors(text: str) -> set[str]:
  """The anchors of the headings of a document, as GitHub makes them."""
  headings = re.findall(r"^#+ (.+)$", without_code(text), re.M)
  plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
  kept = ["".join(c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN") for heading in plain]
  return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("name, most", [("README.md", 140), ("docs/design.md", 220)])
def test_a_document_that_is_to_be_short_is_short(name, most):
  assert len((ROOT / name).read_text().splitlines()) <= most


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_line_of_prose_is_long(name):
  lines = [line for line in without_code((ROOT / name).read_text()).splitlines() if not line.lstrip().startswith("|")]
  shown = [re.sub(r"\]\([^)]*\)", "]", line) for line in lines]  # as a reader sees a link
  assert not [line for line in shown if len(line) > PROSE_MAX and " " in line.strip()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(name):
  text = (ROOT / name).read_text()
  broken = []
  for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
    path, _, anchor = target.partition("#")
    if re.match(r"\w+:", target):
      continue
    file = (ROOT / name).parent / path if path else ROOT / name
    found = file.exists() and (not anchor or file.suffix != ".md" or anchor in anchors(file.read_text()))
    if not found:
      broken.append(target)
  assert not broken


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])  # which names older files
def test_every_file_that_a_document_names_exists(name):
  text = re.sub(r"\]\([^)\s]*\)", "]", (ROOT / name).read_text())  # links are relative, and have a test of their own
  paths = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|json|npz|txt|ipynb|svg|png)\b", text)
  code = re.findall(r"`([^`\n]+)`", text)
  paths += [each for each in code if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]*", each)]
  missing = [path for path in paths if not (ROOT / path).exists()]
  short = {each for each in code if re.fullmatch(r"[\w/-]+\.(?:py|md)", each)} - set(paths) - EXAMPLES
  missing += [each for each in short if not any(f"/{file}".endswith(f"/{each}") for file in FILES)]
  assert not missing


def test_the_figure_of_the_architecture_is_what_its_script_draws():
  spec = importlib.util.spec_from_file_location("architecture_figure", ROOT / "tools" / "architecture_figure.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  assert script.FIGURE.read_text() == script.figure()


def on_stderr(run, argv: list[str], capsys) -> str:
  assert run(argv) == 2
  line, = capsys.readouterr().err.splitlines()
  return line


def refused(function, *arguments) -> str:
  with pytest.raises(Exception) as caught:
    function(*arguments)
  return for_the_user(caught.value)


@pytest.fixture
def errors(tmp_path, tiny_checkpoint, capsys, monkeypatch) -> list[str]:
  """What a user sees of the errors in docs/installation.md, in its order."""
  portable, image = WRITTEN_BEFORE / "portable.mlic", str(tmp_path / "image.png")
  blob = portable.read_bytes()
  cut, out = tmp_path / "cut.mlic", str(tmp_path / "out.png")
  cut.write_bytes(blob[:len(blob) // 2])
  Image.fromarray(np.zeros((64, 64), np.uint16)).save(image)
  code = lambda *argv: on_stderr(program.main, list(argv), capsys)
  ckpt = str(tiny_checkpoint)
  found = [code("decode", str(portable), out, "--ckpt", str(tmp_path / "nowhere")),
           code("decode", str(portable), out, "--ckpt", ckpt),
           code("decode", str(cut), out, "--ckpt", ckpt)]
  content = bitstream.parse(blob)
  found += [f"{portable}: {refused(portable_cdf.check_symbols, content, 0, (np.zeros(8, np.int32),) * 2)}",
            code("encode", image, str(tmp_path / "out.mlic"), "--ckpt", ckpt)]
  monkeypatch.setattr(memory_estimate, "bytes_available", lambda: 1000)
  found += [f"{image}: {refused(memory_estimate.check_memory, CodecConfig(), 512, 768)}",
            refused(load_config, "nano", ["--config.lmda=1"]),
            code("train", "--config", "nano", "--workdir", str(tmp_path / "run")),
            refused(check_batch_size, "batch_size", 9, 1, 8),
            for_the_user(ModuleNotFoundError("no grain", name="grain"))]
  return found


def test_the_errors_of_the_installation_page_are_what_a_user_sees(errors):
  page = (ROOT / "docs" / "installation.md").read_text().split("## Troubleshooting", 1)[1]
  quoted = re.findall(r"^```text\n(.*)\n```$", page, re.M)
  assert len(quoted) == len(errors) == 10
  for quote, error in zip(quoted, errors):
    pattern = ".+".join(re.escape(part) for part in quote.split("…"))
    assert re.search(pattern, error), f"the page has {quote!r}; a user sees {error!r}"
