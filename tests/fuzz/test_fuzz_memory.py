"""Some thousands of random cases in memory, always the same ones; tests/e2e/test_fuzz_e2e.py goes on from there."""

import pytest

from tests.fuzz import memory, service_memory
from tests.fuzz.corpus import CORPUS
from tests.fuzz.reference import Fault, read_answer, read_requests
from tests.fuzz.streams import known_stream


@pytest.mark.parametrize("block", range(4))
def test_random_streams_are_read_as_the_reference_reads_them(block: int) -> None:
    for number in range(block * 500, block * 500 + 500):
        memory.one(0, number)


@pytest.mark.parametrize("entry", CORPUS)
def test_known_streams_are_however_they_are_cut_and_whatever_the_application_does(entry: bytes) -> None:
    for number in range(150):
        memory.one(0, number, known_stream(entry, memory.SHAPE))


def test_random_answers_of_services_are_read_as_the_reference_reads_them() -> None:
    for number in range(5000):
        service_memory.one(0, number)


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("data", "whole", "end"),
    [
        (HEAD + b"\r\n" + HEAD + b"Content-Length: 2\r\n\r\nhi", [b"", b"hi"], "open"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a\r\nhi\r\n0\r\nT: u\r\n\r\n" + HEAD, [b"hi"], "open"),
        (HEAD + b"Connection: x, Close\r\n\r\n" + HEAD + b"\r\n", [b""], "closed"),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [], "fault"),
        (HEAD + b"Content-Length: +2\r\n\r\nhi", [], "fault"),
        (HEAD + b"A: b\nC: d\r\n\r\n", [], "fault"),
        (HEAD + b"A: b\r\n c\r\n\r\n", [], "fault"),
        (HEAD + b"Host: b\r\n\r\n", [], "fault"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n", [], "fault"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhixx", [], "fault"),
        (HEAD + b"Content-Length: 3\r\n\r\nhi", [], "open"),
    ],
)
def test_the_reference_is_strict(data: bytes, whole: list[bytes], end: str) -> None:
    reading = read_requests(data)

    assert ([request.body for request in reading.requests], reading.end) == (whole, end)


def test_the_reference_knows_where_an_answer_ends() -> None:
    one, two = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"HTTP/1.1 204 No Content\r\n\r\n"

    first = read_answer(one + two)
    second = read_answer(one + two, first.end)

    assert (first.body, first.complete, second.status, second.end) == (b"hi", True, 204, len(one + two))
    assert not read_answer(one[:-1]).complete
    with pytest.raises(Fault):
        read_answer(one.replace(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 2"))
