"""`twistd`, with its arguments, in a process that tells what cannot be seen from outside.

INSIDE_FILE names a file that gets a line `{"timers": …, "blocks": …}` each second: timers that wait in the reactor (the
one that counts is among them), and memory blocks that Python holds.

STACKS_FILE names a file that gets sampled stacks, as `flamegraph.py` reads them: SIGUSR2 begins, another one ends.
"""

import json
import os
import signal
import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any, Final

from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.scripts.twistd import run

SAMPLE_S: Final = 0.004
"""Of time on the processor, between two samples; kernels whose tick is longer take theirs."""


def tell(path: str) -> None:
    """One line."""
    loop: Any = reactor
    now = {"timers": len(loop.getDelayedCalls()), "blocks": sys.getallocatedblocks()}
    with open(path, "a", encoding="ascii") as file:
        file.write(json.dumps(now) + "\n")


class Sampler:
    """Looks at the stack whenever the process has used some time on the processor.

    So waiting costs nothing, be it for the kernel or because another process has the core: a sampler that looks by the
    clock would take the places where that happens, system calls mostly, for dear ones.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()
        signal.signal(signal.SIGPROF, self._look)
        signal.signal(signal.SIGUSR2, self._turn)

    def _turn(self, *_: object) -> None:
        if signal.setitimer(signal.ITIMER_PROF, 0) == (0.0, 0.0):
            signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        else:
            self._write()

    def _look(self, _: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1

    def _write(self) -> None:
        lines = [f"{';'.join(map(_shown, stack))} {count}\n" for stack, count in self._stacks.items()]
        with open(self._path + ".part", "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(self._path + ".part", self._path)


def _shown(code: CodeType) -> str:
    """`name (file)`, the file as it is imported; without the separators of the format."""
    roots = sorted((os.path.abspath(root) + "/" for root in sys.path), key=len, reverse=True)
    root = next((root for root in roots if code.co_filename.startswith(root)), "")
    return f"{code.co_qualname} ({code.co_filename.removeprefix(root)})".replace(";", ",")


def main() -> None:
    """Until the gateway ends."""
    if "INSIDE_FILE" in os.environ:
        loop: Any = reactor
        loop.callWhenRunning(LoopingCall(tell, os.environ["INSIDE_FILE"]).start, 1.0)
    if "STACKS_FILE" in os.environ:
        Sampler(os.environ["STACKS_FILE"])
    run()


if __name__ == "__main__":
    main()
