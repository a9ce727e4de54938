"""Checks the links of a built site: internal links lead to a file and an anchor, and external links are well-formed.

    python tools/check_links.py out/docs

It does not use the network. It prints each broken link to stderr, and then exits with status 1. (linkchecker does the
same, but takes three minutes for this site.)
"""
import argparse
import functools
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
  """The links and anchors of a page."""

  def __init__(self, text: str):
    super().__init__()
    self.links: list[str] = []
    self.anchors: set[str] = set()
    self.feed(text)

  def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
    for name, value in attributes:
      if name in ("href", "src") and value:
        self.links.append(value)
      elif name == "id" or name == "name" and tag == "a":
        self.anchors.add(value or "")


@functools.cache
def read_page(file: Path) -> Page:
  return Page(file.read_text("utf-8"))


def problem(link: str, page: Path, site: Path) -> str | None:
  """Returns the problem of a link on a page of the site, or None."""
  try:
    parts = urllib.parse.urlsplit(link)
    port = parts.port
  except ValueError as error:
    return str(error)
  if parts.scheme in ("http", "https"):
    is_url = "." in (parts.hostname or "") and port != 0 and not any(c.isspace() or c in "<>\"{}|\\^`" for c in link)
    return None if is_url else "is not a URL"
  if parts.scheme in ("mailto", "data"):
    return None if parts.path else "is empty"
  if parts.scheme or parts.netloc:
    return f"has the scheme {parts.scheme!r}; wanted http, https, mailto or a relative path"
  target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
  if target.is_dir():
    target /= "index.html"
  if not target.is_relative_to(site):
    return "leads out of the site"
  if not target.is_file():
    return "leads to no file"
  anchor = urllib.parse.unquote(parts.fragment)
  if anchor and target.suffix == ".html" and anchor not in read_page(target).anchors:
    return f"leads to no anchor of {target.relative_to(site)}"
  return None


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("site", type=Path, help="The folder of the built site.")
  site = parser.parse_args(arguments).site.resolve()
  pages = [page for page in sorted(site.rglob("*.html")) if "_static" not in page.parts]  # _static has templates
  links = broken = 0
  for page in pages:
    for link in dict.fromkeys(read_page(page).links):
      links += 1
      if found := problem(link, page, site):
        broken += 1
        print(f"{page.relative_to(site)}: {link} {found}", file=sys.stderr)
  if not pages:
    print(f"{site}: no pages found; wanted the folder of a built site", file=sys.stderr)
  else:
    print(f"{links} links on {len(pages)} pages, {broken} of them broken")
  return 1 if broken or not pages else 0


if __name__ == "__main__":
  sys.exit(main())
