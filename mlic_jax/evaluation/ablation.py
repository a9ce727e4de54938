"""Ablations: train several configs in turn with one budget, and compare them in a table.

    WORKDIR/NAME/           the run of config NAME.py, see loop.py; with seeds, NAME-seed0/ and so on
    WORKDIR/ablation.md     the table so far, written after every run
    WORKDIR/ablation.json   the same figures
"""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlic_jax.atomic_io import write_whole
from mlic_jax.coding.checkpoint_io import Model, find_model, load_model
from mlic_jax.console import printable, say
from mlic_jax.errors import ConfigError
from mlic_jax.evaluation.bd_rate import Curve, bd_rate
from mlic_jax.paths import check_utf8
from mlic_jax.training import latent_training, loop
from mlic_jax.training.checkpoints import check_config, config_to_dict, read_config
from mlic_jax.training.config_schema import check_fields, load_config

# Fields other than the model that change the results: configs that differ in these are not comparable.
COMMON_FIELDS = ("distortion", "lmbda", "lmbdas", "batch_size", "crop_size",
                 "eval_dir", "holdout_every", "eval_images", "eval_crop_size")
COLUMNS = {"name": ("config", ""), "bpp": ("bpp", ".4f"), "psnr": ("PSNR dB", ".2f"), "loss": ("loss", ".4f"),
           "relative_bits": ("bits %", "+.1f"), "bd_rate": ("BD-rate %", "+.1f"), "relative_loss": ("loss %", "+.1f"),
           "lowest": ("lowest", "+.2f"), "highest": ("highest", "+.2f"), "num_steps": ("steps", "")}
NOTE = ("Percentages are relative to the first row, seed by seed if there are several; lowest and highest are the "
        "extremes of loss % over the seeds. Compare rows by the loss, not by bits alone, because PSNR differs as well.")


def ablate(files: Sequence[str | Path], data_dir: str | Path, num_steps: int, workdir: str | Path,
           overrides: Sequence[str] = (), seeds: Sequence[int] = (),
           equal_time: str | Path | None = None, latents: str | Path | None = None) -> list[dict[str, Any]]:
  """Trains every config for `num_steps` on `data_dir`; returns the rows of the table in the order of `files`.

  All configs are checked before the first one is trained. Interrupted runs are continued, and the results of finished
  ones are read. A row has held-out means of the evaluation with the lowest loss (over the rate points, for
  variable-rate models):
    name, step, bpp, psnr (dB), loss, rates (the same figures for each rate point),
    relative_bits, relative_loss: percent more (positive) or less than the first row, mean over the rate points,
    bd_rate: percent more or fewer bits than the first row at the same PSNR, None without a curve,
    lowest, highest, seeds: with `seeds`, the extremes of relative_loss over the seeds, and the rows of the seeds,
    num_steps: with `equal_time`, the number of training steps.

  Args:
    files: config files or names.
    data_dir: the training images.
    num_steps: the budget in steps.
    workdir: the folder of runs and table.
    overrides: "--config.FIELD=VALUE" each, for all configs.
    seeds: train each config once with each seed; a row is then the mean.
    equal_time: the workdir of an earlier ablation with the same configs and seeds. Each config gets as many steps as
      fit into the time of `num_steps` steps of the first config, at the speeds of that ablation.
    latents: a model directory. Only the entropy models are trained, on latents of its frozen transforms
      (training/latent_training.py). The loss is then the bits, psnr and bd_rate are None, and interrupted runs start
      again. A config with `init_from` starts with the parameters of that model directory that fit.

  ConfigError for configs that cannot be trained or compared, and for a workdir with runs of another budget; otherwise
  the errors of loop.train_and_evaluate.
  """
  workdir, cache = Path(workdir), None
  model = None if latents is None else load_model(latents)
  runs = {name: _with_seeds(name, config, seeds)
          for name, config in _load(files, data_dir, num_steps, overrides).items()}
  if equal_time:
    _set_steps(runs, Path(equal_time))
  for run, config in (each for row_runs in runs.values() for each in row_runs.items()):
    codec = check_fields(config)
    check_utf8(workdir / run)
    _check_run(config, workdir / run)
    if model is not None:
      latent_training.check_fits(codec, model)
  rows: list[dict[str, Any]] = []
  for name, row_runs in runs.items():
    found = []
    for i, (run, config) in enumerate(row_runs.items()):
      if not _is_finished(workdir / run, config, model):
        say(f"{run} ({len(rows) + 1} of {len(runs)})")
        if model is None:
          loop.train_and_evaluate(config, workdir / run)
        else:
          cache = cache or latent_training.cache_latents(model, config)
          latent_training.train(config, check_fields(config), cache, workdir / run)
        jax.clear_caches()  # the next model shares no compiled function
      results = _results(workdir / run / "model") if model is None else _latent_results(workdir / run)
      found.append(_row(printable(name), results, [row["seeds"][i] if seeds else row for row in rows]))
    rows.append(_mean(found) if seeds else found[0])
    if equal_time:
      rows[-1]["num_steps"] = config.num_steps
    write_whole(workdir / "ablation.md", markdown(rows, num_steps, printable(Path(data_dir).name)))
    write_whole(workdir / "ablation.json", json.dumps({"steps": num_steps, "rows": rows}, indent=2) + "\n")
  return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns headings and cells. A column without values is omitted, such as the BD-rate of single-rate models."""
  fields = [field for field in COLUMNS if any(row.get(field) is not None for row in rows)]
  cell = lambda row, field: "-" if row.get(field) is None else format(row[field], COLUMNS[field][1])
  return [[COLUMNS[field][0] for field in fields], *([cell(row, field) for field in fields] for row in rows)]


def markdown(rows: Sequence[Mapping[str, Any]], num_steps: int, data: str) -> str:
  """Returns the table in Markdown, with the budget."""
  headings, *cells = table(rows)
  lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
  return (f"{budget(rows, num_steps)}, on {html.escape(data)}; means over the held-out images. {NOTE}\n\n"
          + "".join(f"| {' | '.join(html.escape(cell).replace('|', '&#124;') for cell in line)} |\n" for line in lines))


def budget(rows: Sequence[Mapping[str, Any]], num_steps: int) -> str:
  """Returns the budget of each row, in words."""
  timed = any("num_steps" in row for row in rows)
  return f"The time of {num_steps} steps of the first row each" if timed else f"{num_steps} steps each"


def _load(files: Sequence[str | Path], data_dir: str | Path, num_steps: int,
          overrides: Sequence[str]) -> dict[str, Any]:
  """Loads configs by name. ConfigError unless they are valid and comparable."""
  if not files:
    raise ConfigError("no configs to train; wanted files such as configs/nano.py")
  configs: dict[str, Any] = {}
  for file in files:
    name = Path(file).name.replace(".py", "", 1).replace(":", "-")
    if name in configs:
      raise ConfigError(f"{file}: another config is also named {name}, and their runs would share a folder")
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
                          "wanted configs that differ only in the model")
    configs[name] = config
  return configs


def _check_run(config, workdir: Path) -> None:
  """Raises ConfigError if the workdir has a run with another config, number of steps or data folder."""
  if not (workdir / "config.json").is_file():
    return
  check_config(config, workdir / "config.json")
  before = read_config(workdir / "config.json")
  for field, same in (("num_steps", before.get("num_steps") == config.num_steps),
                      ("data_dir", Path(before.get("data_dir", "")).resolve() == Path(config.data_dir).resolve())):
    if not same:
      raise ConfigError(f"{workdir} holds a run with {field}={before.get(field)}; wanted {config[field]} "
                        "for all of the table, or another --workdir")


def _is_finished(run: Path, config: Any, model: Model | None) -> bool:
  """Whether a run has its results; `model` is that of the latents."""
  if model is None:
    return (run / "checkpoints" / str(config.num_steps)).is_dir()
  return (run / latent_training.RESULTS).is_file() and _latent_results(run)["step"] == config.num_steps


def _latent_results(run: Path) -> dict[str, Any]:
  try:
    results: dict[str, Any] = json.loads((run / latent_training.RESULTS).read_text("utf-8"))
    return {name: results[name] for name in ("step", "eval")}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(f"{run / latent_training.RESULTS}: no results of an ablation ({error})") from error


def _results(model: Path) -> dict[str, Any]:
  """Returns the record of the training in a model directory."""
  training = json.loads((find_model(model) / "config.json").read_text("utf-8")).get("training") or {}
  if not training.get("eval"):
    raise ConfigError(f"{model}: the model has no evaluation results; wanted a model that a training exported")
  return training


def _row(name: str, training: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns the row of a training, by its record; `rows` are the rows above it."""
  rates = training["eval"]
  first = rows[0]["rates"] if rows else rates
  percent = lambda field: float(np.mean([100 * (a[field] / b[field] - 1) for a, b in zip(rates, first)]))
  means = {field: _mean_or_none([rate[field] for rate in rates]) for field in ("bpp", "psnr", "loss")}
  has_curve = rows and means["psnr"] is not None
  return dict(name=name, step=training["step"], **means, relative_bits=percent("bpp"), relative_loss=percent("loss"),
              bd_rate=bd_rate(_curve(name, rates), _curve("first", first))["percent"] if has_curve else None,
              rates=rates)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
  return None if None in values else float(np.mean(np.array(values, float)))


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns the row of several seeds, from the rows of each."""
  losses = [row["relative_loss"] for row in rows]
  figures = {field: _mean_or_none([row[field] for row in rows]) for field in COLUMNS
             if field in rows[0] and field != "name"}
  rates = [{field: _mean_or_none([rate[field] for rate in rates_of_seeds]) for field in ("bpp", "psnr", "loss")}
           for rates_of_seeds in zip(*(row["rates"] for row in rows))]
  return dict(rows[0], **figures, rates=rates, lowest=min(losses), highest=max(losses), seeds=list(rows))


def _with_seeds(name: str, config: Any, seeds: Sequence[int]) -> dict[str, Any]:
  """Returns the config of each run, by the name of its folder."""
  if len(set(seeds)) < len(seeds):
    raise ConfigError(f"--seeds {' '.join(map(str, seeds))}; wanted different seeds")
  runs = {}
  for seed in seeds:
    runs[f"{name}-seed{seed}"] = each = config.copy_and_resolve_references()
    with each.unlocked():
      each.seed = seed
  return runs or {name: config}


def _set_steps(runs: Mapping[str, Mapping[str, Any]], timed: Path) -> None:
  """Sets num_steps of each row to the time of the first row, at the speeds of the same runs in the workdir `timed`."""
  run_times = lambda row_runs: [_seconds_per_step(timed / run, config) for run, config in row_runs.items()]
  seconds = [np.mean(run_times(row_runs)) for row_runs in runs.values()]
  for seconds_per_step, row_runs in zip(seconds, runs.values()):
    for config in row_runs.values():
      with config.unlocked():
        config.num_steps = max(1, round(config.num_steps * seconds[0] / seconds_per_step))


def _seconds_per_step(run: Path, config: Any) -> float:
  """Returns the median seconds per step in the log of a run, without compilation and evaluations.

  ConfigError if there is no log, or if it belongs to another config."""
  try:
    with (run / "metrics.csv").open(newline="") as file:
      speeds = [float(row["images_per_second"]) for row in csv.DictReader(file) if row["images_per_second"]]
  except (OSError, KeyError, ValueError) as error:
    raise ConfigError(f"{run}: no log of a run; wanted a workdir with the same rows and seeds") from error
  if not speeds or not (run / "config.json").is_file():
    raise ConfigError(f"{run}: no log of a run; wanted a workdir with the same rows and seeds")
  check_config(config, run / "config.json")
  return config.batch_size / float(np.median(speeds))


def _curve(name: str, rates: Sequence[Mapping[str, float]]) -> Curve:
  return Curve(name, *np.array(sorted((rate["bpp"], rate["psnr"]) for rate in rates)).T)
