"""Sampled stacks: what they cost by part of the gateway, and a picture of them.

A stack is a line of text: frames `name (file)` or `name (file:line)`, outermost first and separated by semicolons, and
how often it was seen. `inside.py` writes them, and so does `py-spy record --format raw --function`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

import svg

KERNEL: Final = "kernel: receive, send, poll"
REACTOR: Final = "reactor and transports"
REST: Final = "everything else"
PARTS: Final = {
    KERNEL: ("red", ()),
    REACTOR: ("yellow", ("twisted/internet/", "twisted/python/", "bakerygw/runtime/")),
    "client side: channel, parser, answer": (
        "orange",
        tuple(f"bakerygw/edge/{name}.py" for name in ("channel", "framer", "body", "exchange", "deliver", "site")),
    ),
    "decisions: routes, tokens, tenants": ("green", ("bakerygw/edge/", "bakerygw/core/", "bakerygw/tokens/")),
    "limits and flags: Redis": ("purple", ("bakerygw/stores/",)),
    "service side: pool, connection": ("blue", ("bakerygw/upstream/",)),
    "log lines": ("teal", tuple(f"bakerygw/telemetry/{name}.py" for name in ("logs", "writer", "request_log"))),
    "metrics": ("pink", ("bakerygw/telemetry/",)),
    REST: ("quiet", ()),
}
"""Each part of the cost: its colour and the files whose frames belong to it; the first part that fits has a frame."""
SYSTEM_CALLS: Final = frozenset(
    {
        "EPollReactor.doPoll",
        "EPollReactor._add",
        "EPollReactor._remove",
        "Connection.doRead",
        "Connection._dataReceived",
        "Connection.writeSomeData",
        "untilConcludes",
        "TurnPoller.doRead",
        "TurnPoller._watch",
        "_Plain.doRead",
        "_Plain.writeSomeData",
    }
)
"""Functions of the reactor's part which, when they are innermost, wait for the kernel to do what it was asked."""
LOOP: Final = "ReactorBase.mainLoop"
_CONTEXTS: Final = ("twisted/python/log.py", "twisted/python/context.py")
_WAITS: Final = {"twisted/internet/defer.py": "Deferred", "bakerygw/runtime/task.py": "Task"}
_PLUMBING: Final = frozenset({*_CONTEXTS, *_WAITS})
"""Passes calls on: what runs below it belongs to who called."""
_FRAME: Final = re.compile(r"(?P<name>.+) \((?P<file>[^()]*?)(?::\d+)?\)")

WIDTH: Final = 880
MARGIN: Final = 12
ROW: Final = 17
CHARACTER: Final = 6.1
"""Width of one, about, in the labels' font."""
SMALLEST: Final = 0.003
"""Of all samples; what is narrower is left out."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A function: its name, and the file it is in."""

    name: str
    file: str


Stack = tuple[Frame, ...]


def parse(raw: str) -> Counter[Stack]:
    """Samples by stack, from the reactor's loop on; other threads, which wait, are left out."""
    found: Counter[Stack] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_frame(text) for text in stack.split(";")]
        names = [frame.name for frame in frames]
        if LOOP in names:
            found[tuple(frames[names.index(LOOP) :])] += int(count)
    return found


def _frame(text: str) -> Frame:
    match = _FRAME.fullmatch(text)
    return Frame(match["name"], match["file"]) if match else Frame(text, "")


def part_of(stack: Sequence[Frame]) -> str:
    """The part that a sample's time belongs to: that of its innermost frame, plumbing and libraries left out."""
    if stack[-1].name in SYSTEM_CALLS and stack[-1].file.startswith(PARTS[REACTOR][1]):
        return KERNEL
    for frame in reversed(stack):
        if frame.file not in _PLUMBING:
            for part, (_, files) in PARTS.items():
                if frame.file.startswith(files or ("\0",)):
                    return part
    return REST


def costs(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """The share of each part, all of `PARTS` in their order, 1 in all."""
    total = sum(stacks.values())
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[part_of(stack)] += count
    return {part: found[part] / total for part in PARTS} if total else dict.fromkeys(PARTS, 0.0)


def condensed(stack: Sequence[Frame]) -> Stack:
    """The stack without Twisted's logging contexts, and with each row of `Deferred` or `Task` frames as one."""
    kept: list[Frame] = []
    for frame in stack:
        if frame.file in _CONTEXTS:
            continue
        if frame.file not in _WAITS:
            kept.append(frame)
        elif not kept or kept[-1].file != frame.file:
            kept.append(Frame(_WAITS[frame.file], frame.file))
    return tuple(kept)


@dataclass(slots=True)
class Node:
    """A frame with all samples in which it stands below the same frames."""

    samples: int = 0
    below: dict[Frame, "Node"] = field(default_factory=dict)


def tree(stacks: Mapping[Stack, int]) -> Node:
    """All stacks, condensed."""
    root = Node()
    for stack, count in stacks.items():
        node = root
        node.samples += count
        for frame in condensed(stack):
            node = node.below.setdefault(frame, Node())
            node.samples += count
    return root


def _boxes(node: Node, above: Stack, start: int, least: float) -> Iterator[tuple[Stack, int, Node]]:
    """(stack, first sample, node) of each frame that is wide enough."""
    for frame, below in sorted(node.below.items(), key=lambda pair: -pair[1].samples):
        if below.samples >= least:
            yield (*above, frame), start, below
            yield from _boxes(below, (*above, frame), start, least)
        start += below.samples


def draw(stacks: Mapping[Stack, int], title: str) -> str:
    """The picture: callers above, what they call below, as wide as the time it took."""
    root = tree(stacks)
    boxes = list(_boxes(root, (), 0, max(1.0, SMALLEST * root.samples)))
    scale = (WIDTH - 2 * MARGIN) / max(1, root.samples)
    legend = list(_legend())
    top = 44 + ROW * len(legend)
    parts = [svg.text(MARGIN, 26, title), *legend]
    for stack, start, node in boxes:
        corner = (MARGIN + start * scale, top + ROW * (len(stack) - 1))
        parts.append(_box(stack, corner, node.samples * scale, _colour(stack, node), node.samples / root.samples))
    deepest = max((len(stack) for stack, _, _ in boxes), default=0)
    style = "\n    ".join(
        f".{colour} rect {{ fill: var(--{colour}); fill-opacity: 0.28; }}" for colour, _ in PARTS.values()
    )
    style += "\n    g text { font: 10px ui-monospace, SFMono-Regular, Menlo, monospace; }"
    style += "\n    g rect { stroke: var(--page); stroke-width: 0.8; }"
    return svg.picture(WIDTH, top + ROW * deepest + MARGIN, title, parts, style=style)


def _legend() -> Iterator[str]:
    for row in range(0, len(PARTS), 3):
        items = list(PARTS.items())[row : row + 3]
        yield "".join(
            f'<g class="{colour}"><rect x="{x}" y="{40 + row // 3 * ROW}" width="12" height="12"/></g>'
            + svg.text(x + 18, 50 + row // 3 * ROW, part, kind="quiet")
            for x, (part, (colour, _)) in zip(range(MARGIN, WIDTH, 290), items, strict=False)
        )


def _colour(stack: Stack, node: Node) -> str:
    """That of the frame's part; what mostly calls others is not in the kernel, whatever else it does there."""
    calls = sum(below.samples for below in node.below.values()) > node.samples / 2
    part = part_of(stack)
    return PARTS[REACTOR if part == KERNEL and calls else part][0]


def _box(stack: Stack, corner: tuple[float, float], width: float, colour: str, share: float) -> str:
    frame, (x, y) = stack[-1], corner
    room = int((width - 4) / CHARACTER)
    label = frame.name if len(frame.name) <= room else frame.name[: room - 1] + "…"
    words = f'<text x="{x + 3:.1f}" y="{y + 12:.1f}">{escape(label)}</text>' if room >= 4 else ""
    told = escape(f"{frame.name} ({frame.file}) {share:.1%}")
    rect = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 1}"/>'
    return f'<g class="{colour}"><title>{told}</title>{rect}{words}</g>'
