"""Docstrings as reStructuredText: they are written as plain text, with Google's sections and code in `backticks`.

A name in backticks becomes a link if the package has it, and an indented block stays as it is. The description of a
class's field is the comment beside the field, which has its shape or unit.
"""
import ast
import builtins
import functools
import importlib
import inspect
import re
import textwrap
from typing import Any

SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Note|Raises|Returns|Yields):$")
NAME = re.compile(r"[A-Za-z_][\w.]*$")
FIELDS = ("attribute", "data", "property")
OF_A_NAMED_TUPLE = "Alias for field number"  # how Python describes its fields

_fields: dict[str, list[str]] = {}  # descriptions, between the two handlers of autodoc-process-docstring


def to_rst(lines: list[str]) -> list[str]:
  """The lines of a docstring; its sections are left to sphinx.ext.napoleon."""
  result: list[str] = []
  in_section = False
  for is_block, group in _blocks(lines):
    if is_block and not in_section:
      result += ["", f".. code-block:: {_language(group)}", "", *(f"   {line}" for line in group), ""]
      continue
    for line in group:
      if line and not line.startswith(" "):
        in_section = SECTION.match(line) is not None
      result.append(escaped(line))
  return result


def _blocks(lines: list[str]) -> list[tuple[bool, list[str]]]:
  """Runs of lines, and whether they are indented; blank lines belong to the run before them."""
  runs: list[tuple[bool, list[str]]] = []
  for line in lines:
    if runs and (not line.strip() or line.startswith(" ") == runs[-1][0]):
      runs[-1][1].append(line)
    else:
      runs.append((line.startswith(" "), [line]))
  return runs


def _language(block: list[str]) -> str:
  """Of the code in an indented block; it may be a drawing, a table or a command as well."""
  try:
    ast.parse(textwrap.dedent("\n".join(block)))
  except SyntaxError:
    return "text"
  return "python"


def escaped(line: str) -> str:
  """A line of prose: what is in backticks as code, and no other markup."""
  parts = re.split(r"`([^`]+)`", line)
  for i, part in enumerate(parts):
    if i % 2:
      parts[i] = f":py:obj:`{part}`" if NAME.match(part) else f"``{part}``"
    else:
      parts[i] = re.sub(r"([\\*|`]|(?<=\w)_(?!\w))", r"\\\1", part)
  return "".join(parts)


@functools.cache
def field_comments(class_name: str) -> dict[str, str]:
  """{field: the comment beside it} of a class, by its dotted name."""
  module, _, name = class_name.rpartition(".")
  source = textwrap.dedent(inspect.getsource(getattr(importlib.import_module(module), name)))
  lines, found = source.splitlines(), {}
  for node in getattr(ast.parse(source).body[0], "body", ()):
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      _, _, comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset:].partition("#")
      found[node.target.id] = re.sub(r"^type: ignore\[[\w-]+\]\s*#?", "", comment.strip()).strip()
  return found


def convert_prose(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  """A handler of autodoc-process-docstring, before napoleon's."""
  if what in FIELDS:  # of which napoleon would take text before a colon for the type
    _fields[name] = _description(what, name, lines)
    lines.clear()
  lines[:] = to_rst(lines)


def describe_field(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
  """A handler of autodoc-process-docstring, after napoleon's."""
  if what in FIELDS:
    lines[:] = to_rst(_fields.pop(name))


def _description(what: str, name: str, lines: list[str]) -> list[str]:
  """The docstring of a field, or the comment beside it."""
  if what == "attribute" and (not any(lines) or lines[0].startswith(OF_A_NAMED_TUPLE)):
    owner, _, field = name.rpartition(".")
    return [field_comments(owner).get(field, ""), ""]
  return list(lines)


def skip_flax_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
  """A handler of autodoc-skip-member: every Flax module has a parent, a scope and a name, which is None."""
  return True if name in ("parent", "scope") or name == "name" and obj is None else None


def shorten_signature(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None,
                      returns: str | None) -> tuple[str | None, str | None]:
  """A handler of autodoc-process-signature."""
  return signature and shortened(signature), returns


def shortened(signature: str) -> str:
  """A signature without what Flax adds to the arguments of every module, and with defaults that are Python."""
  signature = re.sub(r",? ?\*?,? ?parent: .*$", ")", signature)
  return re.sub(r"<function .*?>+(?=[,)])", "...", re.sub(r"<class '([\w.]+)'>", r"\1", signature))


def tidy(app: Any, doctree: Any) -> None:
  """A handler of doctree-read: the type `bytes` is no link to a field of that name, and `object` no base to mention."""
  from docutils.nodes import paragraph
  from sphinx.addnodes import pending_xref
  for node in list(doctree.findall(lambda node: isinstance(node, pending_xref | paragraph))):
    if isinstance(node, pending_xref) and node.get("refdomain") == "py" and hasattr(builtins, node["reftarget"]):
      node.replace_self(node.children)
    elif node.astext() == "Bases: object":
      node.parent.remove(node)


def setup(app: Any) -> dict[str, bool]:
  app.connect("autodoc-process-docstring", convert_prose, priority=400)
  app.connect("autodoc-process-docstring", describe_field, priority=600)
  app.connect("autodoc-process-signature", shorten_signature)
  app.connect("autodoc-skip-member", skip_flax_fields)
  app.connect("doctree-read", tidy)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
