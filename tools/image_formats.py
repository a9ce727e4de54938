"""Tests which layouts of PNG and TIFF are read or refused, and writes the table of docs/coding.md.

    python tools/image_formats.py              prints the table
    python tools/image_formats.py --write      writes it into docs/coding.md

The script writes each file byte by byte from samples with a known image, because libraries write only few of these
layouts. Every layout has to be read as that image, or refused.
"""
import argparse
import io
import itertools
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlic_jax.data.image_io import ImageError, load_image_with_profile  # noqa: E402

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "coding.md"
BEGIN, END = "<!-- image_formats.py: begin -->\n", "<!-- image_formats.py: end -->\n"
HEIGHT, WIDTH = 11, 13          # primes, so that rows do not end at byte boundaries
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
UNASSOCIATED, ASSOCIATED, UNSPECIFIED = 2, 1, 0
PHOTOMETRIC = {"gray": 1, "gray, 0 is white": 0, "RGB": 2, "palette": 3, "CMYK": 5, "YCbCr": 6, "CIELab": 8}
CHANNELS = {"gray": 1, "gray, 0 is white": 1, "RGB": 3, "palette": 1, "CMYK": 4, "YCbCr": 3, "CIELab": 3}
EXTRA = {"": (), ", alpha": (UNASSOCIATED,), ", premultiplied alpha": (ASSOCIATED,),
         ", a channel of no meaning": (UNSPECIFIED,), ", a channel more": None}
RAW, DEFLATE, PACKBITS = 1, 8, 32773
# (planar, compression, byte order, fill order) to test for samples that have to be refused in any layout.
REFUSED_LAYOUTS = ((1, RAW, "<", 1), (2, RAW, ">", 1), (2, DEFLATE, "<", 1))
SAMPLES = ("1 bit", "2 bits", "4 bits", "8 bits", "12 to 32 bits", "signed", "float")
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


class Case(NamedTuple):
  """A file, and its image (H, W, 3), or None if 8-bit RGB cannot represent it."""
  kind: str                     # row of the table
  samples: str                  # column of the table, one of SAMPLES
  content: bytes
  image: np.ndarray | None


# --- TIFF ----------------------------------------------------------------------------

def tiff(planes: np.ndarray, photometric: int, bits: int = 8, *, sample_format: int = UNSIGNED,
         extra: Sequence[int] | None = (), planar: int = 1, compression: int = RAW, order: str = "<",
         fill_order: int = 1, rows_per_strip: int = 4,
         tags: dict[int, tuple[int, Sequence[int]]] | None = None) -> bytes:
  """Encodes planes (H, W, S) of integers below 2**bits, or of floats, as TIFF.

  extra: the tag ExtraSamples; None omits it. tags: more tags, {number: (type, values)}.
  """
  height, width, samples = planes.shape
  parts = [planes] if planar == 1 else [planes[..., i:i + 1] for i in range(samples)]
  strips = [_compress(_pack(part[top:top + rows_per_strip], bits, order), compression, fill_order)
            for part in parts for top in range(0, height, rows_per_strip)]
  entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [compression]),
             262: (3, [photometric]), 266: (3, [fill_order]), 273: (4, [0] * len(strips)), 277: (3, [samples]),
             278: (4, [rows_per_strip]), 279: (4, [len(strip) for strip in strips]), 284: (3, [planar]),
             339: (3, [sample_format] * samples), **(tags or {})}
  if extra:
    entries[338] = (3, list(extra))
  head = 8 + 2 + 12 * len(entries) + 4
  sizes = {1: "B", 2: "B", 3: "H", 4: "I", 10: "i", 12: "d"}
  pack = lambda kind, values: struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
  outside = {tag: len(pack(*entry)) for tag, entry in entries.items() if len(pack(*entry)) > 4}
  offsets = dict(zip(outside, itertools.accumulate(outside.values(), initial=head)))
  start = head + sum(outside.values())
  entries[273] = (4, list(itertools.accumulate(map(len, strips[:-1]), initial=start)))
  directory = b"".join(
      struct.pack(f"{order}HHI", tag, kind, len(values) // (2 if kind == 10 else 1))
      + (struct.pack(f"{order}I", offsets[tag]) if tag in offsets else pack(kind, values).ljust(4, b"\0"))
      for tag, (kind, values) in sorted(entries.items()))
  values = b"".join(pack(*entries[tag]) for tag in outside)
  magic = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
  return magic + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + values + b"".join(strips)


def _pack(planes: np.ndarray, bits: int, order: str = ">") -> bytes:
  """Packs samples into bytes; each row begins with a new byte."""
  if bits % 8 == 0:
    return planes.astype(f"{order}{'f' if planes.dtype.kind == 'f' else 'u'}{bits // 8}").tobytes()
  rows = planes.reshape(planes.shape[0], -1, 1).astype(np.uint16) >> np.arange(bits)[::-1] & 1
  return np.packbits(rows.reshape(planes.shape[0], -1).astype(np.uint8), axis=1).tobytes()


def _compress(content: bytes, compression: int, fill_order: int) -> bytes:
  """Compresses a strip; fill order 2 reverses the bits of each byte, also of compressed bytes."""
  if compression == DEFLATE:
    content = zlib.compress(content)
  elif compression == PACKBITS:     # literal runs only
    parts = [content[i:i + 128] for i in range(0, len(content), 128)]
    content = b"".join(bytes([len(part) - 1]) + part for part in parts)
  if fill_order == 1:
    return content
  return np.packbits(np.unpackbits(np.frombuffer(content, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()


def tiff_cases() -> Iterator[Case]:
  """Yields TIFF files of all photometric interpretations, bits, sample formats, extra channels and layouts."""
  rng = np.random.default_rng(0)
  for (kind, photometric), (more, extra) in itertools.product(PHOTOMETRIC.items(), EXTRA.items()):
    for bits, sample_format in [(1, UNSIGNED), (2, UNSIGNED), (4, UNSIGNED), (8, UNSIGNED), (12, UNSIGNED),
                                (16, UNSIGNED), (32, UNSIGNED), (8, SIGNED), (16, SIGNED), (16, FLOAT), (32, FLOAT)]:
      if bits < 8 and (CHANNELS[kind] > 1 or more):
        continue
      samples = CHANNELS[kind] + (1 if more else 0)
      planes = rng.integers(0, 2**min(bits, 16), (HEIGHT, WIDTH, samples))
      if extra == (ASSOCIATED,):                               # colors must not exceed alpha
        planes[..., :-1] = planes[..., :-1] * planes[..., -1:] // (2**min(bits, 16) - 1)
      if sample_format == FLOAT:
        planes = planes / 2.0**min(bits, 16)
      tags, palette = {}, None
      if kind == "palette":
        palette = rng.integers(0, 256, (3, 2**min(bits, 12)))
        tags[320] = (3, (257 * palette).ravel().tolist())
      if kind == "YCbCr":
        tags[530] = (3, [1, 1])
      image = None
      if bits <= 8 and sample_format == UNSIGNED and extra is not None:
        image = _image(kind, planes, bits, extra, palette)
      layouts = itertools.product((1, 2), (RAW, DEFLATE, PACKBITS), "<>", (1, 2))
      for planar, compression, order, fill_order in layouts if image is not None else REFUSED_LAYOUTS:
        yield Case(f"TIFF, {kind}{more}", _samples(bits, sample_format), tiff(
            planes, photometric, bits, sample_format=sample_format, extra=extra, planar=planar,
            compression=compression, order=order, fill_order=fill_order, tags=tags), image)


def _samples(bits: int, sample_format: int = UNSIGNED) -> str:
  if sample_format != UNSIGNED:
    return "signed" if sample_format == SIGNED else "float"
  return "12 to 32 bits" if bits > 8 else "1 bit" if bits == 1 else f"{bits} bits"


def _image(kind: str, planes: np.ndarray, bits: int, extra: Sequence[int], palette: np.ndarray | None):
  """Converts samples to RGB on white; None for CMYK and Lab, whose RGB depends on profiles."""
  values = planes[..., :CHANNELS[kind]] * 255 / (2**bits - 1)
  if kind == "palette":
    values = np.moveaxis(palette[:, planes[..., 0]], 0, -1).astype(float)
  elif kind == "gray, 0 is white":
    values = 255 - values
  elif kind == "YCbCr":                                        # as in JFIF
    y, cb, cr = np.moveaxis(values, -1, 0) - np.array([0, 128, 128])[:, None, None]
    values = np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)
  elif kind in ("CMYK", "CIELab"):
    return None
  if extra in ((ASSOCIATED,), (UNASSOCIATED,)):
    alpha = planes[..., -1:] / (2**bits - 1)
    values = (values if extra == (ASSOCIATED,) else values * alpha) + 255 * (1 - alpha)
  return np.broadcast_to(values, (*values.shape[:2], 3))


# --- PNG -----------------------------------------------------------------------------

def png(planes: np.ndarray, color_type: int, depth: int, *, chunks: Sequence[tuple[bytes, bytes]] = (),
        interlaced: bool = False) -> bytes:
  """Encodes planes (H, W, S) of integers below 2**depth as PNG; `chunks` precede the data."""
  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  passes = [planes[top::down, left::right] for top, left, down, right in (ADAM7 if interlaced else ((0, 0, 1, 1),))]
  rows = b"".join(b"\0" + _pack(part[row:row + 1], depth) for part in passes if part.size
                  for row in range(part.shape[0]))
  header = struct.pack(">IIBBBBB", planes.shape[1], planes.shape[0], depth, color_type, 0, 0, interlaced)
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*each) for each in chunks)
          + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def png_cases() -> Iterator[Case]:
  """Yields PNG files of all color types, depths and kinds of transparency, with and without interlacing."""
  rng = np.random.default_rng(1)
  kinds = {"gray": (0, 1, (1, 2, 4, 8, 16)), "RGB": (2, 3, (8, 16)), "palette": (3, 1, (1, 2, 4, 8)),
           "gray, alpha": (4, 2, (8, 16)), "RGB, alpha": (6, 4, (8, 16))}
  for kind, (color_type, samples, depths) in kinds.items():
    for depth, transparent in itertools.product(depths, (False, True)):
      if transparent and "alpha" in kind:
        continue
      planes, chunks = rng.integers(0, 2**depth, (HEIGHT, WIDTH, samples)), []
      values = planes * 255 / (2**depth - 1)
      alpha = planes[..., -1:] / (2**depth - 1) if "alpha" in kind else np.ones((HEIGHT, WIDTH, 1))
      values = values[..., :-1] if "alpha" in kind else values
      if kind == "palette":
        palette = rng.integers(0, 256, (2**depth, 3))
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
        values = palette[planes[..., 0]].astype(float)
      if transparent and kind == "palette":
        entries = rng.integers(0, 256, 2**depth)
        chunks.append((b"tRNS", entries.astype(np.uint8).tobytes()))
        alpha = entries[planes] / 255
      elif transparent:
        color = planes[3, 5]
        chunks.append((b"tRNS", struct.pack(f">{samples}H", *color.tolist())))
        alpha = 1.0 - (planes == color).all(-1, keepdims=True)
      image = np.broadcast_to(values * alpha + 255 * (1 - alpha), (HEIGHT, WIDTH, 3)) if depth <= 8 else None
      more = (", transparent entries" if kind == "palette" else ", a transparent color") if transparent else ""
      for interlaced in False, True:
        yield Case(f"PNG, {kind}{more}", _samples(depth),
                   png(planes, color_type, depth, chunks=chunks, interlaced=interlaced), image)


# --- the table -----------------------------------------------------------------------

def outcome(case: Case) -> str:
  """Returns "read", "refused", or "WRONG: " and the problem."""
  try:
    image = load_image_with_profile(io.BytesIO(case.content)).image
  except ImageError:
    return "refused"
  if case.image is None:
    return "WRONG: it should be refused"
  error = np.abs(image - case.image).max()
  return "read" if error <= 1.5 else f"WRONG: by up to {error:.0f} levels"   # 1.5 for rounding of alpha and YCbCr


def table() -> str:
  """Returns the table: rows are kinds of images, columns kinds of samples, and cells combine all layouts."""
  outcomes: dict[str, dict[str, list[str]]] = {}
  for case in itertools.chain(png_cases(), tiff_cases()):
    outcomes.setdefault(case.kind, {}).setdefault(case.samples, []).append(outcome(case))
  rows: dict[tuple[str, ...], list[str]] = {}
  for kind, cells in outcomes.items():
    rows.setdefault(tuple(_cell(cells.get(samples, [])) for samples in SAMPLES), []).append(kind)
  lines = [("", *SAMPLES), ("---",) * (1 + len(SAMPLES)), *(("<br>".join(kinds), *row) for row, kinds in rows.items())]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(outcomes: Sequence[str]) -> str:
  wrong = next((each for each in outcomes if each.startswith("WRONG")), None)
  if wrong or len(set(outcomes)) < 2:
    return wrong or (outcomes[0] if outcomes else "")
  return f"{outcomes.count('read')} of {len(outcomes)} read"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--write", action="store_true", help="Write the table into docs/coding.md. Default: off.")
  found = table()
  if parser.parse_args().write:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{found}{END}{rest.partition(END)[2]}")
  print(found, end="")


if __name__ == "__main__":
  main()
