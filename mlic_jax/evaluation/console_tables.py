"""Tables of an evaluation for the terminal: rates, BD-rates and costs."""
import sys
from pathlib import Path

from rich.table import Table

from mlic_jax.console import say, show
from mlic_jax.evaluation import bd_rate, results


def show_results(found: dict, named: list[tuple[str, list[dict]]], title: str, written: list[Path]) -> None:
  """Prints the tables and the paths of the written files to stdout."""
  baselines = [curve for curve in results.read_curves(found, "psnr") if curve.kind == "baseline"][:2]
  shown: list[Table | str] = []
  for name, entries in named:
    shown.append(table(f"{name}: {title}", entries, baselines, found["estimate"]))
    if "progressive_mean" in entries[0]:
      shown.append(progressive_table(f"{name}: {title}, progressive decoding", entries))
  rows = [row for row in found["bd_rates"] if row["metric"] == "psnr"]
  if rows:
    shown.append(bd_table(rows))
  if found["published"] and found["published"]["caution"]:
    shown.append(found["published"]["caution"])
  shown += [cost_line(each) for each in found["costs"]]
  if not found["estimate"]:
    shown.append("Rates are those of complete files; each file was decoded and compared. Times exclude compilation.")
  show(*shown, width=None if sys.stdout.isatty() else 120)
  say(f"Written: {', '.join(str(path) for path in written)}")


def table(title: str, entries: list[dict], baselines: list[bd_rate.Curve], estimate: bool) -> Table:
  """Returns a table with a row per quality, and the PSNR of two baselines at the same rate."""
  columns = {"quality": lambda e: e["quality"]}
  if not estimate:
    columns["bpp"] = lambda e: f"{e['mean']['bpp']:.4f}"
  columns["estimated bpp"] = lambda e: f"{e['mean']['bpp_estimated']:.4f}"
  columns["PSNR dB"] = lambda e: f"{e['mean']['psnr']:.2f}"
  columns["MS-SSIM"] = lambda e: number(e["mean"]["ms_ssim"], ".4f")
  if not estimate:
    columns["encode s"] = lambda e: f"{e['mean']['encode_s']:.2f}"
    columns["decode s"] = lambda e: f"{e['mean']['decode_s']:.2f}"
  rate = "bpp_estimated" if estimate else "bpp"
  level = lambda curve: lambda e: number(curve.db_at(e["mean"][rate]), ".2f")
  columns |= {f"{curve.name} dB": level(curve) for curve in baselines}
  return filled(title, columns, entries)


def progressive_table(title: str, entries: list[dict]) -> Table:
  """Returns a table with a row per quality (or single-rate checkpoint) and number of slices."""
  rows = [{"of": entry["name"] if entry["quality"] is None else entry["quality"], **step}
          for entry in entries for step in entry["progressive_mean"]]
  columns = {"checkpoint" if entries[0]["quality"] is None else "quality": lambda row: row["of"],
             "slices": lambda row: row["slices"], "bytes received": lambda row: f"{row['bytes']:.0f}",
             "bpp received": lambda row: f"{row['bpp']:.4f}", "PSNR dB": lambda row: f"{row['psnr']:.2f}",
             "MS-SSIM": lambda row: number(row["ms_ssim"], ".4f")}
  return filled(title, columns, rows)


def bd_table(rows: list[dict]) -> Table:
  """Returns a table with a row per curve: percent of bits and dB against the anchor."""
  columns = {"curve": lambda row: row["curve"], "BD-rate %": lambda row: number(row["percent"], "+.2f"),
             "BD-PSNR dB": lambda row: number(row["bd_db"], "+.2f"),
             "over": lambda row: row["reason"] or "{:.1f} to {:.1f} dB".format(*row["overlap_db"])}
  return filled(f"BD-rate against {rows[0]['anchor']} ({rows[0]['method']})", columns, rows)


def filled(title: str, columns: dict, rows: list[dict]) -> Table:
  table = Table(*columns, title=title, title_justify="left")
  for column in table.columns:
    column.justify = "right"
  for row in rows:
    table.add_row(*(number(cell(row)) for cell in columns.values()))
  return table


def number(value, form: str = "") -> str:
  return "-" if value is None else format(value, form)


def cost_line(each: dict) -> str:
  seconds = ""
  if each["encode_s"] is not None:
    seconds = (f", {each['encode_s']:.2f} s to encode, {each['decode_s']:.2f} s to decode, "
               f"{each['encode_s_per_megapixel']:.2f} and {each['decode_s_per_megapixel']:.2f} s per megapixel")
  if each["first_run"]:
    seconds += f" (the first time {each['first_run']['encode_s']:.1f} and {each['first_run']['decode_s']:.1f} s)"
  return (f"{each['name']}: {each['parameters'] / 1e6:.2f} M live parameters, {each['kmacs_per_pixel']:.1f} kMACs/pixel"
          f"{seconds}, {each['peak_memory_bytes'] / 2**30:.2f} GiB peak memory, on {each['device']}")
