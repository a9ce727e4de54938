"""The pages of the site beside docs/: documents at the root of the repository, and the navigation.

Readers of the plain files need neither, so both are made while the site is built.
"""
import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
PROJECT = {"README.md": "overview", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog",
           "checkpoints/nano/README.md": "nano"}  # and their names below docs/project/, which git ignores
NAVIGATION = {
  "Guide": ("Overview <project/overview>", "installation", "models", "training", "accelerators", "evaluation", "coding",
            "Tutorial <tutorial>", "The nano checkpoint <project/nano>"),
  "Reference": ("api", "format", "glossary"),
  "Development": ("research", "design", "Benchmarks <benchmarks/README>", "project/contributing", "project/changelog"),
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[)#])")


def copy_project_pages(app: Any) -> None:
  """Writes the documents of the root into docs/project/."""
  for name, page in PROJECT.items():
    target = DOCS / "project" / f"{page}.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(with_site_links((ROOT / name).read_text(), ROOT / name, target))


def with_site_links(text: str, file: Path, page: Path) -> str:
  """The text of `file` with its relative links as they are from `page`, to pages of the site where there are some."""
  def moved(match: re.Match) -> str:
    path = Path(os.path.normpath(file.parent / match[1]))
    name = path.relative_to(ROOT).as_posix()
    path = DOCS / "project" / f"{PROJECT[name]}.md" if name in PROJECT else path
    return Path(os.path.relpath(path, page.parent)).as_posix()
  return LINK.sub(moved, text)


def read_page(app: Any, name: str, source: list[str]) -> None:
  """The handler of source-read."""
  file = DOCS / f"{name}.md"
  if file.exists() and file.parent.name != "project":
    source[0] = with_site_links(source[0], file, file)
  if name == "index":
    source[0] += "".join(_toctree(pages, caption) for caption, pages in NAVIGATION.items())
  if name == "benchmarks/README":
    source[0] += _toctree(sorted(path.stem for path in file.parent.glob("*.md") if path != file))


def _toctree(pages: Any, caption: str = "") -> str:
  options = [f":caption: {caption}"] if caption else []
  return "\n".join(["", "```{toctree}", *options, ":hidden:", "", *pages, "```", ""])


def setup(app: Any) -> dict[str, bool]:
  app.connect("builder-inited", copy_project_pages)
  app.connect("source-read", read_page)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
