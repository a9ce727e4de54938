"""Where compiled functions are kept, and what happens when there is no place for them."""
import os

import jax
import pytest

from mlic_jax.runtime import compilation_cache


@pytest.fixture(name="chosen")
def choice(monkeypatch):
  """enable() as in a new process; the folder that it chose, or None."""
  def chosen(**environment):
    for name in "MLIC_JAX_CACHE", "HOME":
      monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
      monkeypatch.setenv(name, str(value))
    before = jax.config.jax_compilation_cache_dir
    try:
      jax.config.update("jax_compilation_cache_dir", None)
      compilation_cache.enable()
      return jax.config.jax_compilation_cache_dir
    finally:
      jax.config.update("jax_compilation_cache_dir", before)
  return chosen


@pytest.fixture
def homeless(monkeypatch):
  """As in a container whose user is none of those in /etc/passwd."""
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_it_is_below_the_home_unless_another_folder_is_named(chosen, tmp_path):
  assert chosen(HOME=tmp_path) == str(tmp_path / ".cache" / "mlic_jax")
  assert chosen(HOME=tmp_path, MLIC_JAX_CACHE=tmp_path / "here") == str(tmp_path / "here")
  assert chosen(HOME=tmp_path, MLIC_JAX_CACHE="") is None


def test_without_a_home_nothing_is_kept_but_in_a_folder_that_is_named(chosen, homeless, tmp_path):
  assert chosen() is None
  assert chosen(MLIC_JAX_CACHE=tmp_path / "here") == str(tmp_path / "here")


def test_a_home_that_cannot_be_written_to_is_none_and_a_folder_that_is_named_is_an_error(chosen, tmp_path):
  (tmp_path / "file").touch()
  assert chosen(HOME=tmp_path / "file") is None
  with pytest.raises(OSError, match="file/here"):
    chosen(MLIC_JAX_CACHE=tmp_path / "file" / "here")
