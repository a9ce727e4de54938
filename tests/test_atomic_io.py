"""Tests of atomic writes."""
import pytest

from mlic_jax.atomic_io import whole_file, write_whole


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside_it(tmp_path):
  path = tmp_path / "results.json"
  write_whole(path, "old")
  with pytest.raises(OSError, match="disk"), whole_file(path) as partial:
    partial.write_text("ne")
    raise OSError("disk")
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
  write_whole(path, b"new")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
