"""The programs: mlic-jax, mlic-jax-train and mlic-jax-eval of an installed package, train.py and eval.py beside it."""
import importlib
import sys

from mlic_jax.runtime import startup


def code() -> int:
  return run("mlic_jax.__main__", "mlic-jax")


def train() -> int:
  return run("mlic_jax.commands.train", "mlic-jax-train")


def evaluate() -> int:
  return run("mlic_jax.commands.evaluate", "mlic-jax-eval")


def run(module: str, program: str) -> int:
  """The exit status of `module`.main under the name of `program`; 2, with one line, where an extra is not installed."""
  startup.begin()
  from mlic_jax.errors import for_the_user
  try:
    return importlib.import_module(module).main(program=program)
  except ModuleNotFoundError as error:
    line = for_the_user(error)
    if line is None:
      raise
    print(f"{program}: {line}", file=sys.stderr)
    return 2
