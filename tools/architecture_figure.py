"""Draws the architecture figure of README.md and docs/: python tools/architecture_figure.py [FILE.svg].

Without FILE it writes docs/figures/architecture.svg. The figure shows a codec of the family: transforms and hyperprior
at the top, and the entropy model of one slice below. Training scans over the slices; encoder and decoder call its
passes.
"""
import sys
from html import escape
from pathlib import Path

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "architecture.svg"
WIDTH, HEIGHT = 1200, 656
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK, MUTED, PAPER, PANEL = "#22303c", "#5c6b78", "#ffffff", "#f5f7f9"
# (fill, stroke) of each kind of block.
TRANSFORM, HYPER = ("#dbe9f6", "#2c6fad"), ("#e3f1e1", "#3f8a45")
CODER, CONTEXT, NETWORK = ("#eceff2", "#5c6b78"), ("#fdf0d9", "#c07a13"), ("#fbe3d6", "#c2552d")
ANCHOR, NONANCHOR, EMPTY = "#2c6fad", "#f0b65c", "#ffffff"

TOP, MIDDLE = 84, 240           # y of the two rows above the panel of the entropy model
PANEL_TOP, PANEL_BOTTOM = 338, 636


class Drawing:
  """SVG elements, in the order in which they are painted."""

  def __init__(self):
    self.elements: list[str] = []

  def add(self, tag: str, content: str = "", **attributes) -> None:
    pairs = " ".join(f'{name.replace("_", "-")}="{escape(str(value))}"' for name, value in attributes.items())
    self.elements.append(f"<{tag} {pairs}>{content}</{tag}>" if content else f"<{tag} {pairs}/>")

  def text(self, x, y, content: str, size=14, color=INK, anchor="middle", **attributes) -> None:
    """Draws one line; `content` is markup, so it may have <tspan> for subscripts."""
    self.add("text", content, x=x, y=y, font_size=size, fill=color, text_anchor=anchor, **attributes)

  def box(self, x, y, width, height, kind, label="", note="", size=14, note_size=11) -> None:
    """Draws a rounded rectangle with its upper left corner at (x, y), a label, and a smaller note below the label."""
    fill, stroke = kind
    self.add("rect", x=x, y=y, width=width, height=height, rx=6, fill=fill, stroke=stroke, stroke_width=1.4)
    middle = y + height / 2 + (-3 if note else 5)
    if label:
      self.text(x + width / 2, middle, label, size)
    if note:
      self.text(x + width / 2, middle + 16, note, note_size, MUTED)

  def transform(self, x, y, width, label, note, kind, narrowing=True) -> None:
    """Draws a trapezoid around the line y that is narrower at the lower resolution."""
    left, right = (38, 24) if narrowing else (24, 38)
    points = f"{x},{y - left} {x + width},{y - right} {x + width},{y + right} {x},{y + left}"
    self.add("polygon", points=points, fill=kind[0], stroke=kind[1], stroke_width=1.4, stroke_linejoin="round")
    self.text(x + width / 2, y + 1, label, 16, font_style="italic")
    self.text(x + width / 2, y + 16, note, 10.5, MUTED)

  def circle(self, x, y, label, size=14) -> None:
    self.add("circle", cx=x, cy=y, r=14, fill=PAPER, stroke=INK, stroke_width=1.3)
    self.text(x, y + 5, label, size)

  def arrow(self, *points, color=INK, dashed=False) -> None:
    """Draws a line through the points, with a head at the last one."""
    path = "M" + " L".join(f"{x},{y}" for x, y in points)
    dash = {"stroke_dasharray": "5 4"} if dashed else {}
    self.add("path", d=path, fill="none", stroke=color, stroke_width=1.5, stroke_linejoin="round",
             marker_end=f"url(#head-{color[1:]})", **dash)

  def dot(self, x, y, color=INK) -> None:
    self.add("circle", cx=x, cy=y, r=2.6, fill=color)

  def image(self, x, y, size) -> None:
    """Draws a small landscape as the symbol of an image."""
    self.add("rect", x=x, y=y, width=size, height=size, rx=3, fill="#cfe3f3", stroke=INK, stroke_width=1.2)
    self.add("circle", cx=x + 0.72 * size, cy=y + 0.28 * size, r=0.11 * size, fill="#f0b65c")
    hills = f"{x},{y + size} {x},{y + .72 * size} {x + .33 * size},{y + .4 * size} {x + .58 * size},{y + .72 * size} " \
            f"{x + .74 * size},{y + .56 * size} {x + size},{y + .8 * size} {x + size},{y + size}"
    self.add("polygon", points=hills, fill="#6d9f71", stroke=INK, stroke_width=0.8, stroke_linejoin="round")

  def stack(self, x, y, count, side=46, step=7, fills=(), stroke=TRANSFORM[1]) -> None:
    """Draws a latent as a stack of slices around (x, y), the first slice in front."""
    left, top = x - side / 2 + step * (count - 1) / 2, y - side / 2 - step * (count - 1) / 2
    for i in reversed(range(count)):
      self.add("rect", x=left - step * (count - 1) + step * i, y=top + step * (count - 1 - i), width=side,
               height=side, rx=2, fill=fills[i] if fills else TRANSFORM[0], stroke=stroke, stroke_width=1.2)

  def checkerboard(self, x, y, cell, count, fill_of) -> None:
    """Draws a slice of `count` by `count` positions; `fill_of` returns the color for anchors (True) and others."""
    for row in range(count):
      for column in range(count):
        self.add("rect", x=x + column * cell, y=y + row * cell, width=cell, height=cell,
                 fill=fill_of((row + column) % 2 == 1), stroke="#8a97a3", stroke_width=0.8)

  def svg(self) -> str:
    heads = "".join(
      f'<marker id="head-{color[1:]}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7" '
      f'orient="auto-start-reverse"><path d="M0,0.8 L9.5,5 L0,9.2 z" fill="{color}"/></marker>'
      for color in (INK, NETWORK[1], CONTEXT[1], HYPER[1]))
    lines = "\n".join(self.elements)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'font-family="{FONT}" role="img" aria-label="Architecture of an MLIC codec">\n<defs>{heads}</defs>\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{PAPER}"/>\n{lines}\n</svg>\n')


def sub(base: str, index: str) -> str:
  """Returns `base` with a subscript, as markup."""
  return (f'<tspan font-style="italic">{base}</tspan><tspan font-size="75%" dy="3">{index}</tspan>'
          '<tspan dy="-3">\u200b</tspan>')


def italic(content: str) -> str:
  return f'<tspan font-style="italic">{content}</tspan>'


MEAN, SCALE, Y_HAT, X_HAT, Z_HAT = "μ", "σ", "ŷ", "x̂", "ẑ"


def transforms(d: Drawing) -> None:
  """Draws the upper row: image, y, symbols, bitstream, y_hat, reconstruction."""
  d.image(28, TOP - 32, 64)
  d.text(60, TOP + 52, f"{italic('x')}, H × W × 3", 12)
  d.arrow((94, TOP), (122, TOP))
  d.transform(124, TOP, 84, sub("g", "a"), "analysis", TRANSFORM)
  d.arrow((208, TOP), (240, TOP))
  d.stack(280, TOP, 4)
  d.text(283, TOP - 44, italic("y"), 15)
  d.text(272, TOP + 52, f"H/16 × W/16 × {italic('M')}", 10.5, MUTED, anchor="end")
  d.arrow((318, TOP), (376, TOP))
  d.circle(391, TOP, "Q")
  d.text(391, TOP - 24, f"round({italic('y')} − {italic(MEAN)})", 12)
  d.arrow((406, TOP), (438, TOP))
  d.box(440, TOP - 26, 92, 52, CODER, "range", "encoder", 14, 13)
  d.arrow((532, TOP), (560, TOP))
  d.box(562, TOP - 32, 96, 64, (PAPER, INK))
  d.text(610, TOP - 8, "0110100…", 13, font_family="'DejaVu Sans Mono', Menlo, monospace")
  d.text(610, TOP + 14, ".mlic file", 12, MUTED)
  d.arrow((658, TOP), (686, TOP))
  d.box(688, TOP - 26, 92, 52, CODER, "range", "decoder", 14, 13)
  d.arrow((780, TOP), (811, TOP))
  d.circle(826, TOP, "+", 18)
  d.text(826, TOP - 24, f"+ {italic(MEAN)} + LRP", 12)
  d.arrow((841, TOP), (884, TOP))
  d.stack(928, TOP, 4)
  d.text(931, TOP - 44, italic(Y_HAT), 15)
  d.arrow((966, TOP), (992, TOP))
  d.transform(994, TOP, 84, sub("g", "s"), "synthesis", TRANSFORM, narrowing=False)
  d.arrow((1078, TOP), (1106, TOP))
  d.image(1108, TOP - 32, 64)
  d.text(1140, TOP + 52, f"{italic(X_HAT)}, H × W × 3", 12)


def hyperprior(d: Drawing) -> None:
  """Draws the second row: z goes into the same file, and both sides compute the hyper features from z_hat."""
  d.arrow((280, TOP + 36), (280, MIDDLE - 29))
  d.transform(230, MIDDLE + 4, 100, sub("h", "a"), "hyper analysis", HYPER)
  d.arrow((330, MIDDLE + 4), (376, MIDDLE + 4))
  d.text(352, MIDDLE - 6, italic("z"), 15)
  d.circle(391, MIDDLE + 4, "Q")
  d.text(386, MIDDLE + 38, f"H/64 × W/64 × {italic('N')}", 10.5, MUTED)
  d.arrow((406, MIDDLE + 4), (438, MIDDLE + 4))
  d.box(440, MIDDLE - 22, 130, 52, CODER, "range coder", "factorized prior", 14, 12)
  d.arrow((610, MIDDLE - 22), (610, TOP + 34))
  d.add("path", d=f"M570,{MIDDLE + 4} L610,{MIDDLE + 4} L610,{MIDDLE - 22}", fill="none", stroke=INK, stroke_width=1.5)
  d.dot(610, MIDDLE + 4)
  d.arrow((610, MIDDLE + 4), (686, MIDDLE + 4))
  d.text(648, MIDDLE - 6, italic(Z_HAT), 15)
  d.transform(688, MIDDLE + 4, 100, sub("h", "s"), "hyper synthesis", HYPER, narrowing=False)


def slices(d: Drawing) -> None:
  """Draws the left half of the panel: the decoded slices, and the two passes of slice k."""
  d.add("rect", x=20, y=PANEL_TOP, width=WIDTH - 40, height=PANEL_BOTTOM - PANEL_TOP, rx=10, fill=PANEL,
        stroke="#c5ced6", stroke_width=1.2)
  d.text(40, PANEL_TOP + 30, "Entropy model", 16, anchor="start", font_weight="bold")
  d.text(40, PANEL_TOP + 50, f"one step for each slice {italic('k')} = 0 … {italic('S')} − 1, in two passes", 12.5,
         MUTED, anchor="start")
  y = PANEL_TOP + 122
  d.stack(98, y + 26, 3, fills=[ANCHOR] * 3, stroke="#16395c")
  d.text(98, y + 98, f"slices 0 … {italic('k')} − 1", 12.5)
  d.text(214, y - 28, "pass 1: anchors", 12.5)
  d.checkerboard(166, y - 18, 16, 6, lambda anchor: ANCHOR if anchor else EMPTY)
  d.text(214, y + 98, f"slice {italic('k')}", 12.5)
  d.arrow((264, y + 30), (284, y + 30))
  d.text(336, y - 28, "pass 2: non-anchors", 12.5)
  d.checkerboard(288, y - 18, 16, 6, lambda anchor: ANCHOR if anchor else NONANCHOR)
  d.text(336, y + 98, f"slice {italic('k')} decoded", 12.5)
  d.arrow((336, y + 106), (336, PANEL_BOTTOM - 22), (38, PANEL_BOTTOM - 22), (38, y + 26), (58, y + 26), dashed=True)
  d.text(190, PANEL_BOTTOM - 30, f"next slice, {italic('k')} + 1", 11.5, MUTED)


def contexts(d: Drawing) -> None:
  """Draws the right half: the inputs of the prior of slice k in each pass, and its networks for mean and scale."""
  rows = (("hyperprior", "features of ẑ", True, HYPER), ("channel", "slices before k", True, CONTEXT),
          ("global inter-slice", "attention over slices before k", True, CONTEXT),
          ("local", "window around each position", False, CONTEXT),
          ("global intra-slice", "attention, anchors to non-anchors", False, CONTEXT))
  x, width, height, first = 452, 214, 38, PANEL_TOP + 50
  d.text(x + width / 2, PANEL_TOP + 38, "contexts: a model has some or all", 12, MUTED)
  d.text(x + width + 40, PANEL_TOP + 26, "in pass", 10.5, MUTED)
  d.text(x + width + 22, PANEL_TOP + 40, "1", 10.5, MUTED)
  d.text(x + width + 58, PANEL_TOP + 40, "2", 10.5, MUTED)
  for i, (name, note, in_both, kind) in enumerate(rows):
    y = first + i * (height + 8)
    d.box(x, y, width, height, kind, name, note, 13.5, 10.5)
    for column, active in ((22, in_both), (58, True)):
      d.add("circle", cx=x + width + column, cy=y + height / 2, r=6, fill=INK if active else PAPER, stroke=INK,
            stroke_width=1.2)
  middle = first + 2 * (height + 8) + height / 2
  d.arrow((400, middle), (x - 4, middle), color=CONTEXT[1])
  right, last = x + width + 80, first + 5 * height + 24
  d.add("path", d=f"M{right - 6},{first} q6,0 6,8 V{middle - 8} q0,8 8,8 q-8,0 -8,8 V{last} q0,8 -6,8", fill="none",
        stroke=MUTED, stroke_width=1.4)
  d.arrow((right + 10, middle), (790, middle))
  d.box(792, middle - 34, 128, 68, NETWORK, "entropy", "parameters", 14, 14)
  d.arrow((920, middle), (978, middle))
  d.text(948, middle - 9, f"{italic(MEAN)}, {italic(SCALE)}", 15)
  d.box(980, middle - 34, 180, 68, CODER, "CDF table", f"row chosen by {italic(SCALE)}", 14, 12)
  d.box(980, middle + 58, 180, 46, NETWORK, "latent residual prediction", "LRP = 0.5 · tanh(·)", 12.5, 10.5)
  d.text(884, middle + 77, "hyper features,", 11, MUTED)
  d.text(884, middle + 92, f"slices 0 … {italic('k')}", 11, MUTED)
  d.arrow((932, middle + 81), (978, middle + 81), color=NETWORK[1])


def connections(d: Drawing) -> None:
  """Draws the connections between the upper rows and the panel."""
  first = PANEL_TOP + 50
  d.arrow((788, MIDDLE + 4), (812, MIDDLE + 4), (812, PANEL_TOP - 22), (426, PANEL_TOP - 22), (426, first + 19),
          (450, first + 19), color=HYPER[1])
  d.text(619, PANEL_TOP - 30, f"hyper features, 2{italic('M')} channels", 12, HYPER[1])
  middle, bus = first + 2 * 46 + 19, 196
  d.add("path", d=f"M1160,{middle + 81} H1176 V{bus} H391 M1160,{middle} H1176", fill="none", stroke=NETWORK[1],
        stroke_width=1.5)
  for x, end in ((391, TOP + 16), (486, TOP + 28), (734, TOP + 28), (826, TOP + 16)):
    d.arrow((x, bus), (x, end), color=NETWORK[1])
  for x, y in ((486, bus), (734, bus), (826, bus), (1176, middle)):
    d.dot(x, y, NETWORK[1])
  d.text(1164, bus + 20, f"{italic(MEAN)}, {italic(SCALE)} and LRP of each pass:", 12, NETWORK[1], anchor="end")
  d.text(1164, bus + 36, "the same in encoder and decoder", 12, NETWORK[1], anchor="end")


def figure() -> str:
  """Returns the figure as SVG."""
  d = Drawing()
  slices(d)
  contexts(d)
  connections(d)
  transforms(d)
  hyperprior(d)
  return d.svg()


if __name__ == "__main__":
  target = Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURE
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(figure())
