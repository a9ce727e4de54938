"""report.html: results.json and its images as one self-contained page, which needs no server and no network.

This module fills the template report/page.html and includes report/page.css and report/page.js. Every number of the
page is in results.json.
"""
import base64
import hashlib
import html
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlic_jax.evaluation.bd_rate import METRICS, Curve
from mlic_jax.evaluation.plots import COLORS, GRAYS, PUBLISHED, Y_LABEL, curves_to_plot, spread
from mlic_jax.evaluation.report_images import ERROR_MAX
from mlic_jax.evaluation.results import read_curves

FOLDER = Path(__file__).parent / "report"
MIME = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".avif": "image/avif"}
WIDE, NARROW = (900, 520), (400, 460)          # viewBox sizes of the plots for desktops and phones
METRIC_NAMES = {"psnr": "PSNR", "ms_ssim": "MS-SSIM"}

Columns = dict[str, Callable[[dict[str, Any]], str]]


def page(results: dict[str, Any], folder: Path, title: str) -> str:
  """Returns the HTML for the content of results.json. Paths in "pictures" are relative to `folder`."""
  names = list(dict.fromkeys(each["name"] for each in results["curves"] if each["kind"] == "checkpoint"))
  paths = sorted({path for record in results["pictures"] for path in _paths(record)})
  data = {"records": results["pictures"], "errorMax": ERROR_MAX,
          "pictures": {path: _data_uri(folder / path) for path in paths}}
  template = string.Template((FOLDER / "page.html").read_text("utf-8"))
  script = (FOLDER / "page.js").read_text("utf-8")
  return template.substitute(
      policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {_script_hash(script)}",
      title=html.escape(f"{', '.join(names)} on {title}"), names=html.escape(", ".join(names)),
      about=html.escape(_about(results, title)), css=(FOLDER / "page.css").read_text("utf-8"),
      js=script, plots=_plots(results), bd_rates=_bd_rates(results),
      rates=_rates(results), costs=_costs(results), figures=_figures(results["pictures"]), sources=_sources(results),
      data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"))   # "</script>" would end the script


def _script_hash(script: str) -> str:
  """Returns the source of a content security policy that allows only this script: the hash of the text in its tags."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(f'{chr(10)}{script}{chr(10)}'.encode()).digest()).decode()}'"


def _about(results: dict[str, Any], title: str) -> str:
  how = ("Rates are estimated by the likelihoods of the model, without coding." if results["estimate"] else
         "Rates are those of complete files; each file was decoded and compared with the prediction of the encoder.")
  caution = (results["published"] or {}).get("caution")
  return f"{title}. {how}{' ' + caution if caution else ''}"


def _paths(record: dict[str, Any]) -> list[str]:
  paths = [record[each] for each in ("original", "reconstruction", "error", "bits")]
  return [*paths, record["baseline"]["picture"]] if record["baseline"] else paths


def _data_uri(path: Path) -> str:
  return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --- the plots -----------------------------------------------------------------------

def _plots(results: dict[str, Any]) -> str:
  """Returns a wide and a narrow plot for each metric, with checkboxes that show and hide curves."""
  parts = []
  for metric in METRICS:
    curves = read_curves(results, metric)
    if not any(curve.kind == "checkpoint" for curve in curves):
      continue
    shown, styles = {curve.name for curve in curves_to_plot(curves)}, _styles(curves)
    boxes = "".join(
        f'<label><input type="checkbox" data-curve="{index}"{" checked" * (curve.name in shown)}>'
        f'<i style="background:{styles[index][0]}"></i>{html.escape(curve.name)}</label>'
        for index, curve in enumerate(curves))
    parts.append(f'<section class="plot" data-metric="{METRIC_NAMES[metric]}"><h3>{METRIC_NAMES[metric]}</h3>'
                 f'{_svg(curves, shown, styles, *WIDE, "wide")}{_svg(curves, shown, styles, *NARROW, "narrow")}'
                 f'<p class="tip" aria-live="polite"></p>'
                 f'<details><summary>Curves</summary><div class="boxes">{boxes}</div></details></section>')
  return "".join(parts)


def _styles(curves: Sequence[Curve]) -> list[tuple[str, str, float]]:
  """Color, dashes and width of every curve."""
  counts, styles = {"checkpoint": 0, "baseline": 0, "published": 0}, list[tuple[str, str, float]]()
  for curve in curves:
    number = counts[curve.kind]
    counts[curve.kind] += 1
    if curve.kind == "checkpoint":
      styles.append((COLORS[number % len(COLORS)][0], "", 3))
    elif curve.kind == "baseline":
      styles.append((GRAYS[number % len(GRAYS)][0], "", 1.6))
    else:
      styles.append((PUBLISHED[number % len(PUBLISHED)][0], ("6 4", "8 3 2 3", "2 3")[number % 3], 1.3))
  return styles


def _svg(curves: Sequence[Curve], shown: set[str], styles, width: int, height: int, name: str) -> str:
  """Returns one plot. page.js shows the figures of a point, which are attributes."""
  is_wide = name == "wide"
  left, top, bottom, right = 46, 12, 44, 220 if is_wide else 142
  x_max = 1.1 * max(curve.bpp[-1] for curve in curves if curve.kind == "checkpoint")
  visible = [db for curve in curves for bpp, db in zip(curve.bpp, curve.db) if bpp <= x_max]   # or may become visible
  y_low, y_high = np.floor(min(visible)), np.ceil(max(visible) + 0.01)   # never the same
  x = lambda bpp: left + (width - left - right) * bpp / x_max
  y = lambda db: top + (height - top - bottom) * (y_high - db) / (y_high - y_low)
  box = f'x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}"'
  clip = f"{curves[0].metric}-{name}"
  out = [f'<svg class="{name}" viewBox="0 0 {width} {height}" role="group" '
         f'aria-label="{Y_LABEL[curves[0].metric]} over bits per pixel">'
         f'<clipPath id="{clip}"><rect {box}/></clipPath>']
  for tick in _ticks(0, x_max, 8 if is_wide else 4):
    out.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{height - bottom}"/>'
               f'<text class="tick" x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>')
  for tick in _ticks(y_low, y_high, 8):
    out.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>'
               f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
  across, up = (left + width - right) / 2, (top + height - bottom) / 2
  out.append(f'<text class="axis" x="{across}" y="{height - 6}" text-anchor="middle">bits per pixel</text>'
             f'<text class="axis" transform="translate(12 {up}) rotate(-90)" text-anchor="middle">'
             f'{METRIC_NAMES[curves[0].metric]}, dB</text>')
  ends = [_end(curve, x_max) for curve in curves]
  at = {index: y(end[1]) for index, end in enumerate(ends) if end and curves[index].name in shown}
  label_heights = dict(zip(at, spread(list(at.values()), 15, top + 6, height - bottom)))
  for index in sorted(range(len(curves)), key=lambda i: curves[i].kind == "checkpoint"):
    out.append(_svg_curve(curves[index], index, styles[index], x, y, x_max, clip, ends[index],
                          label_heights.get(index), width - right, curves[index].name in shown))
  return "".join(out) + "</svg>"


def _svg_curve(curve: Curve, index: int, style, x, y, x_max: float, clip: str, end, label_height, edge: float,
               is_shown: bool) -> str:
  color, dashes, line_width = style
  line = "M" + "L".join(f"{x(bpp):.1f} {y(db):.1f}" for bpp, db in zip(curve.bpp, curve.db))
  points = "".join(
      f'<circle cx="{x(bpp):.1f}" cy="{y(db):.1f}" r="{2.2 if curve.kind == "published" else 4}" fill="{color}" '
      f'data-bpp="{bpp:.4f}" data-db="{db:.3f}"/>' for bpp, db in zip(curve.bpp, curve.db) if bpp <= x_max)
  label = ""
  if end:
    height = y(end[1]) if label_height is None else label_height
    label = (f'<path class="leader" stroke="{color}" data-from="{x(end[0]):.1f} {y(end[1]):.1f}" '
             f'd="M{x(end[0]):.1f} {y(end[1]):.1f}L{edge + 8:.1f} {height:.1f}"/>'
             f'<text class="label" x="{edge + 11:.1f}" y="{height + 4:.1f}" data-at="{y(end[1]):.1f}" '
             f'fill="{color}">{html.escape(_short(curve.name))}</text>')
  return (f'<g class="curve {curve.kind}{"" if is_shown else " off"}" data-curve="{index}" '
          f'data-name="{html.escape(curve.name)}" tabindex="0" role="img" aria-label="{html.escape(curve.name)}">'
          f'<g clip-path="url(#{clip})"><path class="line" d="{line}" stroke="{color}" stroke-width="{line_width}" '
          f'stroke-dasharray="{dashes}"/>{points}</g>{label}</g>')


def _short(name: str) -> str:
  """Returns the name for a plot, without the source in parentheses, which the table has."""
  return name.partition(" (")[0] or name


def _end(curve: Curve, x_max: float) -> tuple[float, float] | None:
  """Returns the point where the line of a curve leaves the plot; None if it never enters it."""
  crossing = curve.db_at(x_max)
  if crossing is not None:
    return x_max, crossing
  inside = curve.bpp <= x_max
  return (curve.bpp[inside][-1], curve.db[inside][-1]) if inside.any() else None


def _ticks(low: float, high: float, most: int) -> list[float]:
  """Returns about `most` round numbers in low..high."""
  raw = (high - low) / most
  power = 10.0**np.floor(np.log10(raw))
  step = next(power * each for each in (1, 2, 5, 10) if power * each >= raw * 0.999)
  return [float(round(each, 6)) for each in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


# --- the tables ----------------------------------------------------------------------

def _table(columns: Columns, rows: Sequence[dict[str, Any]], caption: str) -> str:
  head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in columns)
  body = "".join(f'<tr class="{row.get("kind", "")}">' + "".join(
      f'<{"th scope=row" if i == 0 else "td"}>{html.escape(cell(row))}</{"th" if i == 0 else "td"}>'
      for i, cell in enumerate(columns.values())) + "</tr>" for row in rows)
  return (f'<div class="scroll"><table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
          f"<tbody>{body}</tbody></table></div>")


def _number(value: float | None, form: str) -> str:
  return "–" if value is None else format(value, form)


def _range(values: Sequence[float] | None, form: str) -> str:
  return "–" if values is None else f"{values[0]:{form}} to {values[1]:{form}}"


def _bd_rates(results: dict[str, Any]) -> str:
  """Returns one table per metric, sorted by BD-rate."""
  tables = []
  for metric in METRICS:
    rows = [row for row in results["bd_rates"] if row["metric"] == metric]
    rows.sort(key=lambda row: (row["percent"] is None, row["percent"] or 0))
    columns = {"curve": lambda row: row["curve"], "BD-rate, %": lambda row: _number(row["percent"], "+.2f"),
               f"BD-{METRIC_NAMES[metric]}, dB": lambda row: _number(row["bd_db"], "+.2f"),
               "overlap, dB": lambda row: row["reason"] or _range(row["overlap_db"], ".2f"),
               "overlap, bpp": lambda row: _range(row["overlap_bpp"], ".3f")}
    if rows:
      caption = f"{METRIC_NAMES[metric]}, against {results['anchor']}, {results['bd_method']}"
      tables.append(_table(columns, rows, caption))
  return "".join(tables) or "<p>There is only one curve, so there is no BD-rate.</p>"


def _rates(results: dict[str, Any]) -> str:
  """Returns a table with the means of the checkpoints, for both conventions of PSNR and MS-SSIM."""
  mean = lambda field, form: lambda entry: _number(entry["mean"][field], form)
  columns = {"checkpoint": lambda entry: entry["name"],
             "quality": lambda entry: _number(entry["quality"], "g"), "bpp": mean("bpp", ".4f"),
             "bpp, estimated": mean("bpp_estimated", ".4f"), "PSNR": mean("psnr", ".2f"),
             "PSNR of the pooled error": mean("psnr_of_pooled_mse", ".2f"), "MS-SSIM": mean("ms_ssim", ".4f"),
             "dB of the mean MS-SSIM": mean("ms_ssim_db_of_mean", ".2f"),
             "mean of MS-SSIM in dB": mean("ms_ssim_mean_of_db", ".2f")}
  return _table(columns, results["checkpoints"], "Means over the images")


def _costs(results: dict[str, Any]) -> str:
  first = lambda field: lambda each: _number(each["first_run"] and each["first_run"][field], ".2f")
  columns = {"checkpoint": lambda each: each["name"], "live parameters": lambda each: _number(each["parameters"], ",d"),
             "kMACs per pixel": lambda each: _number(each["kmacs_per_pixel"], ".1f"),
             "of the decoder": lambda each: _number(each["kmacs_per_pixel_decoder"], ".1f"),
             "encode, s": lambda each: _number(each["encode_s"], ".2f"),
             "decode, s": lambda each: _number(each["decode_s"], ".2f"),
             "encode, s per megapixel": lambda each: _number(each["encode_s_per_megapixel"], ".2f"),
             "decode, s per megapixel": lambda each: _number(each["decode_s_per_megapixel"], ".2f"),
             "first encode, s": first("encode_s"), "first decode, s": first("decode_s"),
             "peak memory, MiB": lambda each: f"{each['peak_memory_bytes'] / 2**20:.0f}",
             "device": lambda each: each["device"]}
  return _table(columns, results["costs"],
                "Means over images and rates; the first run compiles, or reads compiled functions from the cache")


def _sources(results: dict[str, Any]) -> str:
  """Returns the sources of published curves as text; the page has no links."""
  sources = {each["name"]: each["source"] for each in results["curves"] if each["source"]}
  rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(source.replace('https://', ''))}</dd>"
                 for name, source in sources.items())
  return f"<details><summary>Sources of the published curves</summary><dl>{rows}</dl></details>" if rows else ""


# --- the images ----------------------------------------------------------------------

def _figures(records: Sequence[dict[str, Any]]) -> str:
  """Returns a figure for each image; page.js fills it with the records of the image."""
  names = list(dict.fromkeys(record["image"] for record in records))
  template = string.Template((FOLDER / "figure.html").read_text("utf-8"))
  figures = []
  for number, name in enumerate(names):
    image_records = [record for record in records if record["image"] == name]
    slices = max(len(record["bits_of_slices"]) for record in image_records)
    options = "".join(f'<option value="{k + 1}">bits of slice {k + 1}</option>' for k in range(slices))
    options_html = '<option value="baseline">baseline, same bytes</option>' if image_records[0]["baseline"] else ""
    if any(record.get("plain") for record in image_records):
      options_html += '<option value="plain">without latent optimization</option>'
    figures.append(template.substitute(
        name=html.escape(name), number=number, last=len(image_records) - 1, middle=len(image_records) // 2,
        slices=options, beside=options_html, ratio=f"{image_records[0]['width']:d} / {image_records[0]['height']:d}"))
  return "".join(figures) or "<p>The evaluation has no images for the report (--report-images 0).</p>"
