"""Whether something goes by itself, without the collector of reference cycles."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Within it, only what nobody refers to any more is freed."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def goes_by_itself(make: Callable[[], object]) -> bool:
    """Whether what `make` returns is freed as soon as it is let go of."""
    with no_collector():
        return weakref.ref(make())() is None
