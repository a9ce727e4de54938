"""Tests of cached files that run code: forged files are not loaded, damaged ones are written again."""
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.forked_programs import Program, run_forks

from mlic_jax.runtime import executable_cache, startup, trusted_files

ROOT = Path(__file__).parents[2]


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


SHARED = "import mlic_jax.coding.rangecoder, mlic_jax.runtime.machine_code"
# With a folder, programs take what was compiled in it before, because numba takes a second for a coder.
CODE = """
import os, sys
from pathlib import Path
import numpy as np
from mlic_jax.coding import cdf_tables, rangecoder
from mlic_jax.runtime import machine_code
compiled, usual = [], machine_code._compiled

def compiled_before(function, arrays, lengths, machine):
  import llvmlite.binding
  path = machine_code._path(function, arrays, lengths, llvmlite.binding)
  content = (Path(sys.argv[1]) / Path(path).relative_to(os.environ["MLIC_JAX_CACHE"])).read_bytes()
  return content[32:]                          # behind its checksum

compile = compiled_before if sys.argv[1:] else usual
machine_code._compiled = lambda *args: compiled.append(args) or compile(*args)
table = cdf_tables.gaussian_table(np.ones(1))
symbols, rows = np.array([3, -200]), np.zeros(2, int)
encoder = rangecoder.Encoder(table, "numba")
encoder.encode(symbols, rows)
decoded = rangecoder.Decoder(table, encoder.finish(), "numba").decode(rows)
assert (decoded == symbols).all()
print(len(compiled))
"""
COMPILED, READ = (0, b"2\n", ""), (0, b"0\n", "")  # an encoder and a decoder


def load_coders(*folders, compiled_in=None):
  """Loads the range coder in a program for each folder of its cache, one after the other; COMPILED or READ."""
  arguments = [str(compiled_in)] if compiled_in else []
  return run_forks(SHARED, [Program(CODE, arguments, {"MLIC_JAX_CACHE": str(folder)}) for folder in folders], ROOT)


def files_below(folder):
  """{path below the folder: content}"""
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DAMAGE = {"empty": lambda content: b"", "cut": lambda content: content[:-9],
          "zeros": lambda content: bytes(len(content)),
          "a_bit": lambda content: content[:-900] + bytes([content[-900] ^ 1]) + content[-899:]}


@pytest.fixture(scope="module", name="loaded")
def loaded_caches(tmp_path_factory):
  """{case: (the programs that have loaded the coder, files of its cache before them, files after them)}

  The cases are "new", "copy", "writable by others", and those of DAMAGE."""
  folders = {case: tmp_path_factory.mktemp("cache") for case in ("new", "copy", "writable by others", *DAMAGE)}
  programs = {"new": load_coders(folders["new"], folders["new"])}
  before = dict.fromkeys(folders, files_below(folders["new"]))
  for case, folder in list(folders.items())[1:]:
    for path, content in before[case].items():
      (folder / path.parent).mkdir(parents=True, exist_ok=True, mode=0o700)
      (folder / path).touch(mode=0o600)
      (folder / path).write_bytes(DAMAGE.get(case, bytes)(content))
      if case == "writable by others":
        (folder / path).chmod(0o666)
  copy, *others = load_coders(*list(folders.values())[1:], folders["writable by others"],
                              compiled_in=folders["new"])
  programs |= {"copy": [copy], "writable by others": [others[0], others[-1]]}
  programs |= {case: [program] for case, program in zip(DAMAGE, others[1:-1], strict=True)}
  return {case: (programs[case], before[case], files_below(folder)) for case, folder in folders.items()}


def test_a_copy_of_the_cache_of_the_range_coder_is_found(loaded):
  assert loaded["new"][0] == [COMPILED, READ] and len(loaded["new"][1]) == 2
  assert loaded["copy"][0] == [READ]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_of_the_range_coder_is_made_again(loaded, damage):
  """As a power cut leaves files that were not on the disk yet."""
  programs, before, after = loaded[damage]
  assert programs == [COMPILED] and after == before


def test_machine_code_that_another_user_can_have_written_is_not_loaded(loaded):
  assert loaded["writable by others"][0] == [COMPILED, READ]
