"""The docstrings of the package as the site has them."""
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.append(str(Path(__file__).parents[2] / "docs" / "_ext"))

import docstrings  # noqa: E402


class Sample(NamedTuple):
  """A class with comments beside its fields."""
  latent: list[int]                 # (B, h, w, M): not "# rounded"
  table: dict[str, str] = {"a": "#"}
  quality: float | None = None      # None of a single-rate codec
  count: int = 0                    # type: ignore[assignment]  # of slices


@pytest.mark.parametrize("line, rst", [
  ("bpp + lmbda * 255**2 * mse", r"bpp + lmbda \* 255\*\*2 \* mse"),
  ("`Codec.encode` of `x * 2`, and a_ | b_c", r":py:obj:`Codec.encode` of ``x * 2``, and a\_ \| b_c"),
  ("an odd ` alone", r"an odd \` alone"),
])
def test_prose_has_code_in_backticks_and_no_other_markup(line, rst):
  assert docstrings.escaped(line) == rst


def test_an_indented_block_stays_as_it_is_and_sections_are_left_to_napoleon():
  docstring = ["It is", "  a * b   drawn", "    as here", "", "    x = f(y)", "Then `y`.", "", "Args:", "  x: a*b.", ""]
  assert docstrings.to_rst(docstring) == [
    "It is", "", ".. code-block:: text", "", "     a * b   drawn", "       as here", "   ", "       x = f(y)", "",
    "Then :py:obj:`y`.", "", "Args:", r"  x: a\*b.", ""]
  assert ".. code-block:: python" in docstrings.to_rst(["Use it:", "", "    blob = codec.encode(image)"])


def test_the_description_of_a_field_is_the_comment_beside_it():
  assert docstrings.field_comments(f"{__name__}.Sample") == {
    "latent": '(B, h, w, M): not "# rounded"', "table": "", "quality": "None of a single-rate codec",
    "count": "of slices"}


@pytest.mark.parametrize("signature, shown", [
  ("(config: C, parent: Module | Scope | _Sentinel | None = <flax.linen.module._Sentinel object>, name=None)",
   "(config: C)"),
  ("(a: int = 1, f: Callable = <function Field.<lambda>>, g=<function g>)", "(a: int = 1, f: Callable = ..., g=...)"),
  ("(dtype: DTypeLike = <class 'jax.numpy.float32'>)", "(dtype: DTypeLike = jax.numpy.float32)"),
])
def test_a_signature_has_no_arguments_of_flax_and_no_addresses(signature, shown):
  assert docstrings.shortened(signature) == shown
