"""The picture of a comparison: throughput as bars, the distribution of latency as lines."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

import svg

SHOWN: Final = {
    "bakerygw": ("bakerygw", "orange", ""),
    "plain": ("plain", "red", "3 2"),
    "haproxy": ("HAProxy", "blue", "6 3"),
    "aiohttp": ("aiohttp", "green", "2 3"),
    "seed": ("FastAPI", "purple", "9 3 2 3"),
}
"""Name, colour and dashes of each system."""
LATENCIES: Final = {"p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "p99.5": 99.5, "p99.9": 99.9}

WIDTH: Final = 880
HEIGHT: Final = 330
BARS: Final = (96.0, 330.0)
"""From and to which x bars reach."""
PLOT: Final = (460.0, 790.0, 66.0, 286.0)
"""Left, right, top and bottom of the lines' axes."""
LABEL_STEP: Final = 15.0
LEAST_MS: Final = 0.001
"""What wrk can tell."""

Rows = Mapping[str, Mapping[str, float]]


def comparison(rows: Rows, title: str) -> str:
    """The SVG; `rows` has, by system, `rps` and the latencies in milliseconds."""
    known = {name: row for name, row in rows.items() if name in SHOWN}
    parts = [
        svg.text(24, 32, "Requests a second"),
        svg.text(PLOT[0], 32, "Latency in ms, by share of requests"),
        *_bars(known),
        *_axes(known),
        *_lines(known),
    ]
    style = ".curve { fill: none; stroke-width: 2; }"
    return svg.picture(WIDTH, HEIGHT, title, parts, style=style)


def _bars(rows: Rows) -> Iterator[str]:
    most = max(row["rps"] for row in rows.values())
    for number, (name, row) in enumerate(rows.items()):
        shown, colour, _ = SHOWN[name]
        y, width = 66 + 50 * number, max(1.0, (BARS[1] - BARS[0]) * row["rps"] / most)
        yield svg.text(BARS[0] - 8, y + 21, shown, anchor="end")
        yield f'<rect x="{BARS[0]}" y="{y}" width="{width:.1f}" height="32" rx="3" style="fill:var(--{colour})"/>'
        yield svg.text(BARS[0] + width + 8, y + 21, f"{row['rps']:,.0f}")


def position(share: float) -> float:
    """Where a percentile is on the horizontal axis: each further nine takes as much room."""
    first, last = (-math.log10(1 - edge / 100) for edge in (50, 99.9))
    return PLOT[0] + (PLOT[1] - PLOT[0]) * (-math.log10(1 - share / 100) - first) / (last - first)


def decades(rows: Rows) -> tuple[int, int]:
    """The powers of ten between which all latencies are."""
    values = [max(row[name], LEAST_MS) for row in rows.values() for name in LATENCIES]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _height(value: float, rows: Rows) -> float:
    low, high = decades(rows)
    return PLOT[3] - (PLOT[3] - PLOT[2]) * (math.log10(max(value, LEAST_MS)) - low) / (high - low)


def _axes(rows: Rows) -> Iterator[str]:
    low, high = decades(rows)
    for power in range(low, high + 1):
        y = _height(10.0**power, rows)
        yield svg.line(PLOT[0], y, PLOT[1], y)
        yield svg.text(PLOT[0] - 8, y + 4, f"{10.0**power:g}", kind="quiet", anchor="end")
    for name in ("p50", "p90", "p99", "p99.9"):
        x = position(LATENCIES[name])
        yield svg.line(x, PLOT[2], x, PLOT[3])
        yield svg.text(x, PLOT[3] + 18, name, kind="quiet", anchor="middle")


def _lines(rows: Rows) -> Iterator[str]:
    ends = {}
    for name, row in rows.items():
        _, colour, dashes = SHOWN[name]
        points = [(position(share), _height(row[key], rows)) for key, share in LATENCIES.items()]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<path class="curve" d="M{way}" style="stroke:var(--{colour})"{dashed}/>'
        ends[name] = points[-1][1]
    for name, y in spread(ends).items():
        yield svg.text(PLOT[1] + 8, y + 4, SHOWN[name][0], colour=SHOWN[name][1])


def spread(wanted: Mapping[str, float], step: float = LABEL_STEP) -> dict[str, float]:
    """Heights for labels, in the order of those wanted and as near as goes without one covering another."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, y in sorted(wanted.items(), key=lambda pair: pair[1]):
        last = max(y, last + step)
        found[name] = last
    return found
