"""Tests of the link checker, on a site with two pages."""
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import check_links  # noqa: E402

GOOD = ("https://arxiv.org/abs/2307.15421", "other.html#part", "#top", "folder/", "image%20of.svg", "mailto:a@b.org",
        "data:image/png;base64,AA==", "other.html?q=1")


@pytest.fixture
def site(tmp_path):
  """(links of the first page) -> the folder of the site."""
  check_links.read_page.cache_clear()
  (tmp_path / "site" / "folder").mkdir(parents=True)
  (tmp_path / "outside.html").write_text("")
  (tmp_path / "site" / "image of.svg").write_text("<svg/>")
  (tmp_path / "site" / "folder" / "index.html").write_text('<a href="../index.html">back</a>')
  (tmp_path / "site" / "other.html").write_text('<h1 id="part">Part</h1><a name="old"></a>')

  def write(*links):
    body = "".join(f'<a href="{link}">link</a>' for link in links)
    (tmp_path / "site" / "index.html").write_text(f'<html><body id="top">{body}</body></html>')
    return str(tmp_path / "site")
  return write


def test_links_to_files_and_anchors_of_the_site_and_well_formed_urls_pass(site, capsys):
  assert check_links.main([site(*GOOD)]) == 0
  assert capsys.readouterr() == ("9 links on 3 pages, 0 of them broken\n", "")


@pytest.mark.parametrize("link, problem", [
  ("missing.html", "leads to no file"),
  ("other.html#path", "leads to no anchor of other.html"),
  ("#bottom", "leads to no anchor of index.html"),
  ("../outside.html", "leads out of the site"),
  ("https://arxiv/abs", "is not a URL"),
  ("https://arxiv.org/a b", "is not a URL"),
  ("http://[::1", "Invalid IPv6 URL"),
  ("file:///etc/hosts", "has the scheme 'file'; wanted http, https, mailto or a relative path"),
])
def test_a_broken_link_is_a_line_and_fails_the_check(site, capsys, link, problem):
  assert check_links.main([site(link)]) == 1
  assert capsys.readouterr().err == f"index.html: {link} {problem}\n"


def test_a_folder_without_pages_fails_the_check(tmp_path, capsys):
  assert check_links.main([str(tmp_path)]) == 1
  assert capsys.readouterr().err == f"{tmp_path}: no pages found; wanted the folder of a built site\n"
