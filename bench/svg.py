"""Pictures as SVG text: static, without scripts or fonts of their own, readable on light and dark pages."""

from collections.abc import Iterable
from html import escape
from typing import Final

COLOURS: Final = {
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9198a1"),
    "line": ("#8c959f", "#6e7681"),
    "page": ("#f6f8fa", "#0d1117"),
    "orange": ("#bc4c00", "#ffa657"),
    "blue": ("#0550ae", "#79c0ff"),
    "green": ("#1a7f37", "#56d364"),
    "purple": ("#8250df", "#d2a8ff"),
    "red": ("#cf222e", "#ff7b72"),
    "teal": ("#1b7c83", "#76e3ea"),
    "yellow": ("#7d4e00", "#e3b341"),
    "pink": ("#bf3989", "#ff9bce"),
}
"""On light pages, on dark ones."""


def text(x: float, y: float, words: str, *, kind: str = "", anchor: str = "start", colour: str = "") -> str:
    """One line of words; `kind` is a class of the style sheet, `colour` a name out of `COLOURS`."""
    extra = f' class="{kind}"' if kind else ""
    extra += f' text-anchor="{anchor}"' if anchor != "start" else ""
    extra += f' style="fill:var(--{colour})"' if colour else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A thin line of a grid."""
    return f'<path class="grid" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def picture(width: int, height: int, title: str, parts: Iterable[str], *, style: str = "") -> str:
    """The whole file."""
    light, dark = (" ".join(f"--{name}: {both[index]};" for name, both in COLOURS.items()) for index in (0, 1))
    body = "\n".join(f"  {part}" for part in parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" \
aria-labelledby="title">
  <title id="title">{escape(title)}</title>
  <style>
    svg {{ {light} }}
    @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}
    text {{ font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }}
    .quiet {{ font-size: 12px; fill: var(--quiet); }}
    .page {{ fill: var(--page); }}
    .grid {{ stroke: var(--line); stroke-width: 0.5; fill: none; }}
    {style}
  </style>
  <rect class="page" width="{width}" height="{height}" rx="10"/>
{body}
</svg>
"""
