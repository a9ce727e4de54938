"""Ablations: configurations trained one after the other with one budget, and a table of what each is worth.

    WORKDIR/NAME/           the run of configuration NAME.py, see loop.py
    WORKDIR/ablation.md     the table so far, written after every run
    WORKDIR/ablation.json   the same figures
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.coding.model_directory import find_model
from mlic_jax.console import printable, say
from mlic_jax.errors import ConfigError
from mlic_jax.evaluation.rd import Curve, bd_rate
from mlic_jax.files import write_whole
from mlic_jax.training import loop
from mlic_jax.training.checkpoints import check_config, config_to_dict, read_config
from mlic_jax.training.configuration import check_fields, load_config

# What decides the figures beside the model: rows that differ here do not belong into one table.
COMMON_FIELDS = ("distortion", "lmbda", "lmbdas", "batch_size", "crop_size",
                 "eval_dir", "holdout_every", "eval_images", "eval_crop_size")
COLUMNS = {"name": ("config", ""), "bpp": ("bpp", ".4f"), "psnr": ("PSNR dB", ".2f"), "loss": ("loss", ".4f"),
           "relative_bits": ("bits %", "+.1f"), "bd_rate": ("BD-rate %", "+.1f"), "relative_loss": ("loss %", "+.1f")}
NOTE = "Percentages are against the first row. Bits alone do not rank: PSNR differs too, and the loss weighs both."


def ablate(files: Sequence[str | Path], data_dir: str | Path, num_steps: int, workdir: str | Path,
           overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
  """Trains every configuration for `num_steps` on `data_dir`; returns the rows of the table in the order of `files`.

  `overrides`, "--config.FIELD=VALUE" each, change all of them.

  A run that was interrupted is continued, one that is finished is read. A row has the held-out means of the evaluation
  with the lowest loss (over the rates, for variable-rate models):
    name, step, bpp, psnr (dB), loss, rates (the same figures for each rate),
    relative_bits, relative_loss: percent more (positive) or less than the first row, mean over the rates,
    bd_rate: percent more or less bits than the first row at the same PSNR, None where there is no curve.
  All configurations are checked before the first is trained. ConfigError in one line for those that cannot be trained
  or compared, and for a workdir with runs of another budget; besides what loop.train_and_evaluate raises.
  """
  workdir = Path(workdir)
  configs = _load(files, data_dir, num_steps, overrides)
  for name, config in configs.items():
    _check_run(config, workdir / name)
  rows: list[dict[str, Any]] = []
  for name, config in configs.items():
    if not (workdir / name / "checkpoints" / str(num_steps)).is_dir():
      say(f"{name} ({len(rows) + 1} of {len(configs)})")
      loop.train_and_evaluate(config, workdir / name)
      jax.clear_caches()  # what was compiled for one model is of no use to the next
    rows.append(_row(printable(name), workdir / name / "model", rows))
    write_whole(workdir / "ablation.md", markdown(rows, num_steps, printable(Path(data_dir).name)))
    write_whole(workdir / "ablation.json", json.dumps({"steps": num_steps, "rows": rows}, indent=2) + "\n")
  return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Headings and cells; BD-rate has a column only where there are curves, of variable-rate models."""
  fields = [field for field in COLUMNS if any(row[field] is not None for row in rows)]
  cell = lambda row, field: "-" if row[field] is None else format(row[field], COLUMNS[field][1])
  return [[COLUMNS[field][0] for field in fields], *([cell(row, field) for field in fields] for row in rows)]


def markdown(rows: Sequence[Mapping[str, Any]], num_steps: int, data: str) -> str:
  """The table as Markdown, with the budget."""
  headings, *cells = table(rows)
  lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
  return (f"{num_steps} steps each, on {data}; means over the held-out photographs. {NOTE}\n\n"
          + "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines))


def _load(files: Sequence[str | Path], data_dir: str | Path, num_steps: int,
          overrides: Sequence[str]) -> dict[str, Any]:
  """The configurations by name, complete and comparable."""
  if not files:
    raise ConfigError("no configurations to train; wanted files such as configs/nano.py")
  configs: dict[str, Any] = {}
  for file in files:
    name = Path(file).name.replace(".py", "", 1).replace(":", "-")
    if name in configs:
      raise ConfigError(f"{file}: another configuration is named {name} too; their runs would share a folder")
    config = load_config(file, overrides)
    with config.unlocked():
      config.data_dir, config.num_steps = str(data_dir), num_steps
    try:
      check_fields(config)
    except ConfigError as error:
      raise ConfigError(f"{file}: {error}") from error
    first_name, first = next(iter(configs.items()), (name, config))
    fields, firsts = config_to_dict(config), config_to_dict(first)
    for field in COMMON_FIELDS:
      if fields.get(field) != firsts.get(field):
        raise ConfigError(f"{file}: {field}={fields.get(field)} but {firsts.get(field)} in {first_name}; "
                          "configurations of one table differ in the model, not in the yardstick")
    configs[name] = config
  return configs


def _check_run(config, workdir: Path) -> None:
  """ConfigError when the workdir holds a run of another configuration, number of steps or folder of photographs."""
  if not (workdir / "config.json").is_file():
    return
  check_config(config, workdir / "config.json")
  before = read_config(workdir / "config.json")
  for field, same in (("num_steps", before.get("num_steps") == config.num_steps),
                      ("data_dir", Path(before.get("data_dir", "")).resolve() == Path(config.data_dir).resolve())):
    if not same:
      raise ConfigError(f"{workdir} holds a run with {field}={before.get(field)}; wanted {config[field]} "
                        "for all of the table, or another --workdir")


def _row(name: str, model: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The row of a trained model; `rows` are those above it."""
  training = json.loads((find_model(model) / "config.json").read_text("utf-8")).get("training") or {}
  if not training.get("eval"):
    raise ConfigError(f"{model}: a model without figures of an evaluation; wanted one that a training exported")
  rates = training["eval"]
  first = rows[0]["rates"] if rows else rates
  percent = lambda field: float(np.mean([100 * (a[field] / b[field] - 1) for a, b in zip(rates, first)]))
  means = {field: float(np.mean([rate[field] for rate in rates])) for field in ("bpp", "psnr", "loss")}
  return dict(name=name, step=training["step"], **means, relative_bits=percent("bpp"), relative_loss=percent("loss"),
              bd_rate=bd_rate(_curve(name, rates), _curve("first", first))["percent"] if rows else None, rates=rates)


def _curve(name: str, rates: Sequence[Mapping[str, float]]) -> Curve:
  return Curve(name, *np.array(sorted((rate["bpp"], rate["psnr"]) for rate in rates)).T)
