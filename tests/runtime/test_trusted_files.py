"""Tests of cached files that run code: forged files are not loaded, damaged ones are written again."""
import os
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest

from mlic_jax.runtime import executable_cache, startup, trusted_files


class Forged:
  """Runs code when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, "w")


def by_mode(path, monkeypatch):
  path.chmod(0o666)


def by_group(path, monkeypatch):
  path.chmod(0o620)


def by_owner(path, monkeypatch):
  """As if another user had written it."""
  monkeypatch.setattr(trusted_files, "os", OtherUser())


class OtherUser:
  """The module os, in a process of another user."""
  def __getattr__(self, name):
    return (lambda: os.geteuid() + 1) if name == "geteuid" else getattr(os, name)


@pytest.mark.parametrize("forge", [by_mode, by_group, by_owner], ids=lambda forge: forge.__name__)
def test_a_program_that_another_user_can_have_written_is_not_unpickled(tmp_path, monkeypatch, forge):
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(startup, "code", "as it is now")
  monkeypatch.setattr(startup, "digest_of_code", lambda: "as it is now")
  triple = lambda: executable_cache.with_executable_cache(lambda x: 3 * x, "triple", "")(np.float32(2))
  assert triple() == 6
  path, = [each for each in (tmp_path / "cache" / "programs").iterdir() if not each.is_symlink()]
  forged = zlib.compress(pickle.dumps(Forged(tmp_path / "it ran")))
  path.write_bytes(forged)
  with monkeypatch.context() as others:
    forge(path, others)
    assert executable_cache._read(str(path)) is None and not (tmp_path / "it ran").exists()
  if path.stat().st_mode & 0o022:
    assert triple() == 6 and path.read_bytes() != forged    # it was compiled, and written again
    assert not (tmp_path / "it ran").exists()
    assert executable_cache._read(str(path)) is not None
  else:                                                     # this is what the check prevents
    assert executable_cache._read(str(path)) is None and (tmp_path / "it ran").exists()


def test_a_folder_of_programs_that_others_can_write_to_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(startup, "code", "as it is now")
  monkeypatch.setattr(executable_cache, "_read", lambda path: pytest.fail("a program was read"))
  (tmp_path / "programs").mkdir()
  (tmp_path / "programs").chmod(0o770)
  assert executable_cache.with_executable_cache(lambda x: 3 * x, "triple", "")(np.float32(2)) == 6
  assert not list((tmp_path / "programs").iterdir())


def test_a_written_file_is_trusted_for_any_umask_and_any_previous_file(tmp_path):
  before = os.umask(0)
  try:
    path = tmp_path / "file"
    path.write_bytes(b"forged")
    assert trusted_files.read_trusted(str(path)) is None
    trusted_files.write_trusted(str(path), b"own")
  finally:
    os.umask(before)
  assert trusted_files.read_trusted(str(path)) == b"own"
  assert trusted_files.read_trusted(str(tmp_path / "none")) is trusted_files.read_trusted(str(tmp_path)) is None


def load_coder(folder):
  """Whether the range coder was compiled, instead of read from the cache in `folder`, and stderr."""
  program = ("import sys; from mlic_jax.coding import rangecoder, cdf_tables; import numpy as np;"
             "table = cdf_tables.gaussian_table(np.ones(1)); symbols, rows = np.array([3, -200]), np.zeros(2, int);"
             "encoder = rangecoder.Encoder(table, 'numba'); encoder.encode(symbols, rows);"
             "decoded = rangecoder.Decoder(table, encoder.finish(), 'numba').decode(rows);"
             "assert (decoded == symbols).all(); print('numba' in sys.modules)")
  done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"MLIC_JAX_CACHE": str(folder)},
                        capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout.strip() == "True", done.stderr


@pytest.fixture(scope="module", name="filled")
def filled_cache(tmp_path_factory):
  """{path below the folder: content} of the cache of the range coder."""
  folder = tmp_path_factory.mktemp("filled")
  assert load_coder(folder) == (True, "")
  assert load_coder(folder) == (False, "")
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(filled, folder):
  for path, content in filled.items():
    (folder / path.parent).mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / path).touch(mode=0o600)
    (folder / path).write_bytes(content)
  return folder


def test_a_copy_of_the_cache_of_the_range_coder_is_found(filled, tmp_path):
  assert len(filled) == 2 and load_coder(copy_of(filled, tmp_path)) == (False, "")


@pytest.mark.parametrize("damage", [
  lambda content: b"", lambda content: content[:-9], lambda content: bytes(len(content)),
  lambda content: content[:-900] + bytes([content[-900] ^ 1]) + content[-899:]], ids=["empty", "cut", "zeros", "a_bit"])
def test_a_damaged_cache_of_the_range_coder_is_made_again(filled, tmp_path, damage):
  """As a power cut leaves files that were not on the disk yet."""
  copy_of(filled, tmp_path)
  for path in filled:
    (tmp_path / path).write_bytes(damage(filled[path]))
  assert load_coder(tmp_path) == (True, "")
  assert {path: (tmp_path / path).read_bytes() for path in filled} == filled


def test_machine_code_that_another_user_can_have_written_is_not_loaded(filled, tmp_path):
  cache = copy_of(filled, tmp_path)
  for path in filled:
    (cache / path).chmod(0o666)
  assert load_coder(cache) == (True, "")
  assert load_coder(cache) == (False, "")
