"""`twistd`, with its arguments, in a process that tells each second what cannot be seen from outside.

Appends lines `{"timers": …, "blocks": …, "files": …}` to the file named by INSIDE_FILE: timers that wait in the
reactor (the one that counts is among them), memory blocks that Python holds, and descriptors the reactor watches.
"""

import json
import os
import sys

from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.scripts.twistd import run


def tell() -> None:
    """One line."""
    now = {
        "timers": len(reactor.getDelayedCalls()),
        "blocks": sys.getallocatedblocks(),
        "files": len(reactor.getReaders()),
    }
    with open(os.environ["INSIDE_FILE"], "a", encoding="ascii") as file:
        file.write(json.dumps(now) + "\n")


if __name__ == "__main__":
    reactor.callWhenRunning(LoopingCall(tell).start, 1.0)
    run()
