"""Logs of a training run: a progress bar or lines in the terminal, CSV files, TensorBoard."""

import contextlib
import csv
import datetime
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tensorboardX import SummaryWriter

from mlic_jax.atomic_io import whole_file
from mlic_jax.console import say
from mlic_jax.paths import copy_files, is_remote
from mlic_jax.training.checkpoints import storage_problem

log = logging.getLogger(__name__)

TRAIN_COLUMNS = ("step", "loss", "bpp", "bpp_y", "bpp_z", "mse", "psnr", "ms_ssim", "distortion", "aux_loss",
                 "grad_norm", "learning_rate", "images_per_second", "data_wait_share", "map_loss")
EVAL_COLUMNS = ("step", "quality", "lmbda", "loss", "bpp", "bpp_y", "bpp_z", "mse", "psnr", "ms_ssim", "distortion")


class CsvLog:
  """A CSV file with the given columns. A resumed run appends to it, and rows after `step` are dropped.

  In a file of an older version with other columns, the given columns are kept."""

  def __init__(self, path: Path, columns: tuple[str, ...], step: int):
    rows = []
    if path.exists():
      with path.open(newline="") as file:
        old, *others = list(csv.reader(file)) or [list(columns)]
        for row in others:  # a killed run may have left half a row at the end
          if len(row) == len(old) and row[0].isdigit() and int(row[0]) <= step:
            cells = dict(zip(old, row))
            rows.append([cells.get(name, "") for name in columns])
    with whole_file(path) as partial, partial.open("w", newline="") as file:
      csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    self.columns = columns
    self._file = path.open("a", newline="")
    self._writer = csv.writer(self._file, lineterminator="\n")

  def write(self, row: dict[str, float]) -> None:
    """Appends a row, with six digits for floats; columns that `row` does not have stay empty."""
    cells = (row.get(name, "") for name in self.columns)
    self._writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])
    self.flush()

  def flush(self) -> None:
    """Writes the rows to the disk; if it is full, they are written by a later call."""
    try:
      self._file.flush()
    except OSError as error:
      log.warning("%s: %s; its rows will be written later", self._file.name, error.strerror)

  def close(self) -> None:
    self.flush()
    with contextlib.suppress(OSError):  # flush has reported it
      self._file.close()


def _fidelity(row: dict[str, float]) -> str:
  """Returns the fidelity in a row of metrics as text: MS-SSIM where it is the distortion, and PSNR otherwise."""
  return f"MS-SSIM {row['ms_ssim']:.4f}" if "ms_ssim" in row else f"PSNR {row['psnr']:.2f} dB"


class RunLog:
  """Logs a run from step `start` to `num_steps`, as a context manager.

  It writes to the terminal, WORKDIR/metrics.csv, WORKDIR/eval.csv and WORKDIR/tensorboard. For a remote workdir the
  files are in a temporary `folder`, which `publish` copies.

  Args:
    workdir: the workdir of the run.
    start: the step at which the run starts or continues.
    num_steps: the last step.
    evaluated: the step of the last valid evaluation; later rows of eval.csv are dropped.
    quiet: write nothing, in all processes but the first.
  """

  def __init__(self, workdir: Path, start: int, num_steps: int, evaluated: int, quiet: bool = False):
    self.num_steps, self.quiet, self._bar = num_steps, quiet, None
    self.workdir = self.folder = workdir
    if is_remote(workdir):  # remote files cannot be appended to
      self._temporary = tempfile.TemporaryDirectory(prefix="mlic_jax_")
      self.folder = Path(self._temporary.name)
      for name in ("metrics.csv", "eval.csv"):
        if (workdir / name).exists() and not quiet:
          (self.folder / name).write_bytes((workdir / name).read_bytes())
    if quiet:
      return
    self._train = CsvLog(self.folder / "metrics.csv", TRAIN_COLUMNS, start)
    self._eval = CsvLog(self.folder / "eval.csv", EVAL_COLUMNS, evaluated)
    self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1 if start else None)
    if sys.stdout.isatty():
      columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=8), TextColumn("{task.description}"),
                 TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(min_width=7, no_wrap=True)))
      self._bar = Progress(*columns, console=Console(), transient=True)
      self._task = self._bar.add_task("compiling", total=num_steps, completed=start)

  def __enter__(self) -> "RunLog":
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._bar:
      self._bar.stop()
    if not self.quiet:
      self._train.close()
      self._eval.close()
      self._board.close()
      self.publish()

  def publish(self) -> None:
    """Copies the files to a remote workdir; called before every checkpoint and at the end."""
    if self.folder == self.workdir or self.quiet:
      return
    self._board.flush()
    try:
      copy_files(self.folder, self.workdir)
    except Exception as error:
      if (problem := storage_problem(error)) is None:
        raise
      log.warning("%s: %s; the logs will be copied later", self.workdir, problem)

  def step(self, step: int) -> None:
    """Moves the progress bar to `step`."""
    if self._bar:
      self._bar.update(self._task, completed=step)

  def train(self, row: dict[str, float]) -> None:
    """Logs means over the steps since the last call, with the columns of TRAIN_COLUMNS.

    The columns of StepTimer are missing until a step has run without compiling; the speed is then not logged."""
    if self.quiet:
      return
    figures, left = f"loss {row['loss']:.4f}  {row['bpp']:.4f} bpp  {_fidelity(row)}", ""
    if "images_per_second" in row:
      figures += f"  {row['images_per_second']:.1f} images/s"
      seconds = (self.num_steps - row["step"]) * row["seconds_per_step"]
      left = f"  left {datetime.timedelta(seconds=round(seconds))}"
    if self._bar:
      self._bar.update(self._task, description=figures)
    else:
      self.say(f"step {row['step']}/{self.num_steps}  {figures}{left}")
    self._train.write(row)
    for name, value in row.items():
      if name not in ("step", "seconds_per_step"):
        self._board.add_scalar(f"train/{name}", value, row["step"])

  def evaluation(self, step: int, rows: list[dict[str, float]], loss: float, exported: bool) -> None:
    """Logs an evaluation: a row with EVAL_COLUMNS for each quality, the mean loss, and whether it was exported."""
    if self.quiet:
      return
    points = "  ".join(f"{row['bpp']:.3f} bpp {_fidelity(row)}" for row in rows)
    self.say(f"evaluation at step {step}: loss {loss:.4f}{' (best, exported)' if exported else ''}  {points}")
    self._board.add_scalar("eval/loss", loss, step)
    for row in rows:
      self._eval.write(row)
      suffix = "" if row["quality"] is None else f"/quality_{row['quality']}"
      for name in EVAL_COLUMNS[3:]:
        if name in row:
          self._board.add_scalar(f"eval/{name}{suffix}", row[name], step)

  def images(self, step: int, originals: np.ndarray, reconstructions: dict[int | None, np.ndarray]) -> None:
    """Logs held-out images (n, H, W, 3) uint8 and their reconstructions at each quality to TensorBoard."""
    if self.quiet:
      return
    self._board.add_images("eval/original", originals, step, dataformats="NHWC")
    for quality, decoded in reconstructions.items():
      suffix = "" if quality is None else f"/quality_{quality}"
      self._board.add_images(f"eval/reconstruction{suffix}", decoded, step, dataformats="NHWC")

  def hyperparameters(self, fields: dict[str, object]) -> None:
    """Logs the config as text to TensorBoard."""
    if not self.quiet:
      lines = [f"    {name} = {value!r}" for name, value in sorted(fields.items())]
      self._board.add_text("configuration", "\n".join(lines), 0)

  def say(self, line: str) -> None:
    """Prints a line to the terminal, above the progress bar."""
    if self.quiet:
      return
    if self._bar:
      self._bar.console.print(line, highlight=False, markup=False)
    else:
      say(line)
