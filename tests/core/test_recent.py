"""Memories of bounded size: what is forgotten, what stays, and what is told how often."""

from bakerygw.core.recent import Recent, Seldom


def test_the_one_used_longest_ago_is_forgotten():
    recent = Recent(3)
    for key in "abc":
        recent.put(key, key.upper())

    recent.get("a")
    recent.use("b")
    recent.put("c", "another")
    recent.put("d", "D")

    assert recent.items() == [("b", "B"), ("c", "another"), ("d", "D")]
    assert list(recent) == ["b", "c", "d"]
    assert len(recent) == 3


def test_a_value_that_was_dropped_is_told_once():
    recent = Recent(3)
    recent.put("a", 1)

    assert [recent.drop("a"), recent.drop("a"), recent.get("a"), recent.use("a")] == [1, None, None, None]


def test_each_key_is_due_once_in_its_time():
    seldom = Seldom(60, 2)

    assert [seldom.is_due("a", now) for now in (1000, 1000, 1059.9, 1060, 1119)] == [True, False, False, True, False]
    assert seldom.is_due("b", 1119)


def test_a_clock_that_is_set_back_silences_nobody():
    seldom = Seldom(60, 2)
    seldom.is_due("a", 1000)

    assert seldom.is_due("a", 400)
    assert not seldom.is_due("a", 410)


def test_a_key_that_was_pushed_out_is_due_at_once():
    seldom = Seldom(60, 2)
    for key in "abc":
        seldom.is_due(key, 1000)

    assert len(seldom) == 2
    assert [seldom.is_due(key, 1001) for key in "cba"] == [False, False, True]
