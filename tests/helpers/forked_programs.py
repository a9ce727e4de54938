"""Short programs in forks of one Python process, after imports that they share, which take most of their time."""
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOTS = [str(Path(__file__).parents[up]) for up in (2, 1)]  # the repository, and tests/ for its helpers

# A fork starts no threads, no backend of jax and no buffered output of its parent. The streams that are pipes are files
# in a fork; closed streams and those of a redirection are as the shell has set them.
PARENT = """
import gc, json, os, stat, sys, warnings
folder = sys.argv[1]
with open(f"{folder}/programs") as file:
  imports, programs = json.load(file)
exec(imports, {})
gc.freeze()                             # for the exits
statuses = []
for number, (program, arguments, environment) in enumerate(programs):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # of jax, whose threads have not started yet
    child = os.fork()
  if not child:
    for stream, descriptor in (sys.stdout, 1), (sys.stderr, 2):
      if stream is not None and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        file = os.open(f"{folder}/{number}.{descriptor}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    exec(program, {"__name__": "__main__"})
    sys.exit()
  statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with open(f"{folder}/statuses", "w") as file:
  json.dump(statuses, file)
"""


class Program(NamedTuple):
  """Source code, its sys.argv[1:], and changes of os.environ after the imports."""
  source: str
  arguments: list[str]
  environment: dict[str, str] = {}


class Finished(NamedTuple):
  """What a program leaves; its streams are empty where a redirection has another place for them."""
  status: int
  stdout: bytes
  stderr: str


def run_forks(imports: str, programs: list[Program], cwd: Path, redirections: str = "",
              environment: dict[str, str] | None = None) -> list[Finished]:
  """Runs programs one after the other, each in a fork of a process that `imports` has run in.

  `redirections` are those of a shell for this process, such as "<&-". `environment` is that of its start; the default
  is the environment of the tests."""
  environment = (environment or dict(os.environ)) | {"PYTHONPATH": os.pathsep.join(ROOTS)}
  with TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "programs").write_text(json.dumps((imports, programs)))
    done = subprocess.run(["bash", "-c", f'"$@" {redirections}', "bash", sys.executable, "-c", PARENT, name], cwd=cwd,
                          capture_output=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done.stderr.decode()
    read = lambda path: path.read_bytes() if path.exists() else b""
    return [Finished(status, read(folder / f"{i}.1"), read(folder / f"{i}.2").decode())
            for i, status in enumerate(json.loads((folder / "statuses").read_text()))]
