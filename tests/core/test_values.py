"""What `value` makes: a dataclass like any other, but for the frozen constructor's price."""

import pytest

from bakerygw.core.values import value


@value
class Point:
    x: int
    y: int = 0


def test_values_are_compared_and_hashed_by_what_they_hold():
    assert Point(x=1) == Point(x=1, y=0) != Point(x=2)
    assert len({Point(x=1), Point(x=1), Point(x=2)}) == 2


def test_arguments_are_named():
    with pytest.raises(TypeError):
        Point(1, 2)


def test_nothing_can_be_added():
    with pytest.raises(AttributeError):
        Point(x=1).z = 3
