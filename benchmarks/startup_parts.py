"""Measures the time that each part of the startup machinery saves, by leaving it out.

    python benchmarks/startup_parts.py --ckpt checkpoints/nano --image IMAGE [--train IMAGES] [--turns 3]

Parts: executables on disk (runtime/executable_cache.py), the decoder compiled in the background
(coding/background_compile.py), huge pages (runtime/huge_pages.py), all three together. For each it runs `encode`,
`decode` and `eval` of one image, with an empty cache and with a filled one, and with --train the first step of nano.
It prints medians of wall time and of CPU time (user and system, children included) in seconds.
"""
import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("nothing", "executables", "background", "huge pages", "all three")


def run_without(part: str, command: list[str]) -> int:
  """Runs a command of mlic-jax in this process without a part; called in a process of its own."""
  from mlic_jax.runtime import huge_pages, startup
  if part in ("huge pages", "all three"):
    startup.use_huge_pages = lambda: None
    os.environ.pop(huge_pages.TUNABLES, None)
  from mlic_jax import __main__
  if part in ("executables", "all three"):
    begin = startup.begin

    def begin_without_code():
      begin()
      startup.code = None
    startup.begin = begin_without_code
  if part in ("background", "all three"):
    from mlic_jax.evaluation import runner
    runner.decoder_compiled_in_background = lambda *_: contextlib.nullcontext()
  startup.begin()
  return __main__.main(command)


def measure(part: str, command: list[str], cache: Path) -> tuple[float, float]:
  """Returns wall and CPU seconds of a command."""
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
  subprocess.run([sys.executable, __file__, "--run-without", part, *command], check=True, cwd=ROOT,
                 env=os.environ | {"MLIC_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
  wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
  if sys.argv[1:2] == ["--run-without"]:
    raise SystemExit(run_without(sys.argv[2], sys.argv[3:]))
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--ckpt", required=True, help="Model directory.")
  parser.add_argument("--image", required=True, help="Image to code.")
  parser.add_argument("--train", help="Folder of images; the first step of nano is measured on it.")
  parser.add_argument("--turns", type=int, default=3, help="Runs of everything. Default: 3.")
  args = parser.parse_args()
  ckpt, image = str(Path(args.ckpt).resolve()), Path(args.image).resolve()
  seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
  with tempfile.TemporaryDirectory() as folder_name:
    folder = Path(folder_name)
    (folder / "images").mkdir()
    shutil.copy(image, folder / "images")
    commands = {"encode": ["encode", str(image), str(folder / "a.mlic"), "--ckpt", ckpt],
                "decode": ["decode", str(folder / "a.mlic"), str(folder / "a.png"), "--ckpt", ckpt],
                "eval": ["eval", "--ckpt", ckpt, "--data", str(folder / "images"), "--out", str(folder / "out"),
                         "--baselines", "none", "--workers", "1"]}
    if args.train:
      commands["train"] = ["train", "--config", "nano", "--workdir", str(folder / "run"), "--config.data_dir",
                           str(Path(args.train).resolve()), "--config.num_steps=1", "--config.eval_images=1"]
    for turn in range(args.turns):
      for part in PARTS:
        cache = folder / f"cache {part} {turn}"
        for state in ("empty", "filled"):
          for name, command in commands.items():
            for written in ("run", "out"):
              shutil.rmtree(folder / written, ignore_errors=True)
            seconds.setdefault((f"{name}, {state}", part), []).append(measure(part, command, cache))
        shutil.rmtree(cache, ignore_errors=True)
      print(f"turn {turn + 1} of {args.turns}", file=sys.stderr, flush=True)
  print("without".ljust(18) + "".join(part.rjust(20) for part in PARTS))
  for row in dict.fromkeys(row for row, _ in seconds):
    cells = [[statistics.median(column) for column in zip(*seconds[row, part], strict=True)] for part in PARTS]
    print(row.ljust(18) + "".join(f"{wall:9.1f} s {cpu:5.1f} CPU" for wall, cpu in cells))


if __name__ == "__main__":
  main()
