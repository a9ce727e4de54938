"""Tests of the folder of compiled functions: its location, its trust, and repair of damage."""
import os
import shutil
import stat
from pathlib import Path

import jax
import pytest
from helpers.forked_programs import Program, run_forks
from PIL import Image

from mlic_jax.__main__ import main
from mlic_jax.runtime import compilation_cache, trusted_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="chosen")
def choice(monkeypatch):
  """enable() as in a new process; the folder that it chose, or None."""
  def chosen(**environment):
    for name in "MLIC_JAX_CACHE", "HOME":
      monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
      monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(compilation_cache, "_reported", set())
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
  assert chosen(HOME=tmp_path) == str(tmp_path / ".cache" / "mlic_jax" / "xla")
  assert chosen(HOME=tmp_path, MLIC_JAX_CACHE=tmp_path / "here") == str(tmp_path / "here" / "xla")
  assert chosen(HOME=tmp_path, MLIC_JAX_CACHE="") is None


def test_without_a_home_nothing_is_cached_but_in_a_folder_that_is_named(chosen, homeless, tmp_path):
  assert chosen() is None
  assert chosen(MLIC_JAX_CACHE=tmp_path / "here") == str(tmp_path / "here" / "xla")


def test_only_the_user_can_enter_the_folder(chosen, tmp_path):
  before = os.umask(0)
  try:
    path = chosen(MLIC_JAX_CACHE=tmp_path / "here")
  finally:
    os.umask(before)
  assert [stat.S_IMODE(os.stat(each).st_mode) for each in (tmp_path / "here", path)] == [0o700, 0o700]


def a_file(folder, monkeypatch):
  folder.write_text("")


def below_a_file(folder, monkeypatch):
  folder.parent.rmdir()
  folder.parent.write_text("")


def foreign(folder, monkeypatch):
  folder.mkdir()
  monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


def writable_by_others(folder, monkeypatch):
  folder.mkdir()
  folder.chmod(0o777)


def read_only(folder, monkeypatch):
  folder.mkdir()
  monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)


UNUSABLE = {a_file: "File exists", below_a_file: "Not a directory", foreign: "belongs to another user",
            writable_by_others: "can be written to by other users", read_only: "cannot be written to"}


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda make: make.__name__)
def test_a_folder_that_cannot_be_used_costs_one_line_and_the_cache(chosen, make, tmp_path, monkeypatch, caplog):
  folder = tmp_path / "below" / "cache"
  folder.parent.mkdir()
  make(folder, monkeypatch)
  assert chosen(MLIC_JAX_CACHE=folder) is None
  assert compilation_cache.folder("numba") is None
  assert caplog.messages == [
      f"compiling without a cache: {folder}: {UNUSABLE[make]}; MLIC_JAX_CACHE names another folder"]


@pytest.mark.parametrize("make", [foreign, writable_by_others], ids=lambda make: make.__name__)
def test_a_subfolder_of_another_user_is_not_used_either(chosen, make, tmp_path, monkeypatch, caplog):
  make(tmp_path / "xla", monkeypatch)
  assert chosen(MLIC_JAX_CACHE=tmp_path) is None
  assert UNUSABLE[make] in caplog.text


def test_a_home_that_cannot_be_written_to_has_no_cache_and_no_message(chosen, tmp_path, caplog):
  (tmp_path / "file").touch()
  assert chosen(HOME=tmp_path / "file") is None
  assert not caplog.messages


PROGRAM = """
import sys, jax
from mlic_jax.runtime import compilation_cache
compilation_cache.MIN_COMPILE_SECONDS = 0.0
compilation_cache.enable()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
print(jax.jit(lambda x: 3 * x)(2.0), sum(hits))
"""
COMPILED, READ = (0, b"6.0 0\n", ""), (0, b"6.0 1\n", "")  # without a message


def run(*programs):
  """Runs pairs of a folder of the cache and code before PROGRAM, one after the other."""
  environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
  forks = [Program(before + PROGRAM, [], {"MLIC_JAX_CACHE": str(folder)}) for folder, before in programs]
  return run_forks("import jax, mlic_jax.runtime.compilation_cache", forks, ROOT,
                   environment=environment | {"JAX_PLATFORMS": "cpu"})


DAMAGE = {"empty": lambda content: b"", "cut": lambda content: content[:len(content) // 2],
          "zeros": lambda content: bytes(len(content)),
          "a_bit": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]}


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
  """The path of the entry of PROGRAM, which a process has written."""
  folder = tmp_path_factory.mktemp("filled")
  assert run((folder, "")) == [COMPILED]
  path, = (folder / "xla").glob("*-cache")
  return path


@pytest.fixture(scope="module")
def repaired(entry, tmp_path_factory):
  """{name of a damage: two programs that find an entry with it}"""
  folders = {name: tmp_path_factory.mktemp("damaged") for name in DAMAGE}
  for name, folder in folders.items():
    shutil.copytree(entry.parent, folder / "xla")
    (folder / "xla" / entry.name).write_bytes(DAMAGE[name](entry.read_bytes()))
  found = iter(run(*[(folder, "") for folder in folders.values() for _ in range(2)]))
  return {name: [next(found), next(found)] for name in folders}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_of_jax_that_is_damaged_is_compiled_and_written_again(repaired, damage):
  assert repaired[damage] == [COMPILED, READ]


def test_an_entry_that_a_full_disk_cut_is_removed_and_the_reason_said_once(entry, tmp_path):
  """A limit on the size of files ends writes as a full disk does."""
  size = entry.stat().st_size // 2
  limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
  entries = f"import pathlib; assert not list(pathlib.Path({str(tmp_path)!r}).glob('xla/*-cache'))\n"
  limited, *later = run((tmp_path, limit), (tmp_path, entries), (tmp_path, ""))
  assert limited[:2] == COMPILED[:2] and len(limited.stderr.splitlines()) == 1 and "File too large" in limited.stderr
  assert later == [COMPILED, READ]


@pytest.mark.parametrize("mode, folder_mode, stays",
                         [(0o600, 0o755, True), (0o664, 0o755, False), (0o664, 0o700, True)])
def test_an_entry_that_others_can_write_to_is_removed(chosen, tmp_path, mode, folder_mode, stays):
  folder = tmp_path / "xla"
  folder.mkdir()
  folder.chmod(folder_mode)
  entry = folder / "jit_f-0-cache"
  entry.touch()
  entry.chmod(mode)
  (folder / "notes").touch()
  (folder / "notes").chmod(0o666)
  chosen(MLIC_JAX_CACHE=tmp_path)
  assert entry.exists() == stays and (folder / "notes").exists()   # only what jax wrote is removed


def test_an_entry_of_another_user_is_removed(chosen, tmp_path, monkeypatch):
  path = chosen(MLIC_JAX_CACHE=tmp_path)
  entry = tmp_path / "xla" / "jit_f-0-cache"
  entry.touch()
  monkeypatch.setattr(compilation_cache, "distrust", lambda status: trusted_files.FOREIGN)
  compilation_cache._remove_untrusted_entries(path)
  assert not entry.exists()


def test_encoding_needs_no_cache(tiny_checkpoint, tmp_path, monkeypatch, caplog):
  (tmp_path / "cache").touch()                     # a file in the place of the folder
  monkeypatch.setenv("MLIC_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(compilation_cache, "_reported", set())
  Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
  arguments = ["encode", tmp_path / "image.png", tmp_path / "image.mlic", "--ckpt", tiny_checkpoint]
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)   # of another test in this process
  try:
    status = main([*map(str, arguments)])
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert status == 0 and (tmp_path / "image.mlic").stat().st_size > 20
  assert len(caplog.messages) == 1 and "File exists" in caplog.text
