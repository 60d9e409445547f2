"""Resources of `twisted.web` behave under the gateway's own channel as under a stock `Site`, or better."""

from typing import Any

import pytest
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from bakerygw.core.problem import refuse
from tests.collector import goes_by_itself
from tests.edge.edge_fakes import BUFFER_BYTES, request
from tests.edge.resource_fakes import MAX_BODY_BYTES, Own, Pushing, Stock, Waiting

OLD = b"GET /%b HTTP/1.0\r\nHost: a\r\n\r\n"


class Rendered(Resource):
    """A leaf whose `render` is a function."""

    isLeaf = True

    def __init__(self, render: Any) -> None:
        super().__init__()
        self.render = render


class Page(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.responseHeaders.setRawHeaders(b"Vary", [b"Accept", b"Origin"])
        request.addCookie(b"a", b"1", path=b"/")
        request.addCookie(b"b", b"2")
        return b"<p>%b %b</p>" % (request.uri, request.getHeader(b"host"))

    def render_POST(self, request: Any) -> bytes:
        return b"%b %b" % (request.getHeader(b"Content-Type") or b"-", request.content.read()[::-1])


def plain(request: Any) -> bytes:
    request.setHeader(b"Content-Type", b"text/plain")
    return b"hello"


def redirecting(request: Any) -> bytes:
    request.redirect(b"/elsewhere")
    return b""


def unmodified(request: Any) -> bytes:
    request.setETag(b'"one"')
    request.setLastModified(1_600_000_000)
    return b"the whole page"


def empty(request: Any) -> int:
    request.setResponseCode(204)
    request.finish()
    return NOT_DONE_YET


def measured(request: Any) -> int:
    request.setHeader(b"Content-Length", b"10")
    request.write(b"01234")
    request.write(b"56789")
    request.finish()
    return NOT_DONE_YET


def unmeasured(request: Any) -> int:
    request.setHeader(b"Content-Type", b"text/plain")
    request.write(b"01234")
    request.write(b"56789")
    request.finish()
    return NOT_DONE_YET


def closing(request: Any) -> bytes:
    request.setHeader(b"Connection", b"close")
    return b"bye"


def odd(request: Any) -> bytes:
    request.setResponseCode(418, b"I am a teapot")
    request.setHeader(b"X-Broken", b"a\r\nX-Evil: b")
    return b"x" * 200_000


def queried(request: Any) -> bytes:
    return repr((sorted(request.args.items()), request.path, request.received_cookies, request.postpath)).encode()


def told(request: Any) -> bytes:
    return repr((request.client, request.host, request.isSecure(), request.clientproto)).encode()


def tree() -> Resource:
    root = Resource()
    root.putChild(b"data", Rendered(plain))
    root.putChild(b"page", Page())
    for render in (redirecting, unmodified, empty, measured, unmeasured, closing, odd, queried, told):
        root.putChild(render.__name__.encode(), Rendered(render))
    return root


NAMES = [
    *(b"data", b"page", b"redirecting", b"unmodified", b"empty", b"measured", b"unmeasured", b"closing", b"odd"),
    *(b"queried?b=2&a=1&a=3", b"queried/a%20b/x", b"told", b"missing", b"data/below", b""),
]
ASKED = {
    "GET": lambda name: request(b"GET", b"/" + name, b"Cookie: c=d; e=f"),
    "HEAD": lambda name: request(b"HEAD", b"/" + name),
    "conditional GET": lambda name: request(b"GET", b"/" + name, b'If-None-Match: "one"'),
    "last GET": lambda name: request(b"GET", b"/" + name, b"Connection: close"),
    "HTTP/1.0": lambda name: OLD % name,
    "POST": lambda name: request(b"POST", b"/" + name, b"Content-Type: text/x", body=b"content"),
    "form": lambda name: request(
        b"POST", b"/" + name, b"Content-Type: application/x-www-form-urlencoded", body=b"a=1&b=2"
    ),
    "chunked": lambda name: request(b"POST", b"/" + name, b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
}


def lengths_aside(reply: tuple[int, dict[bytes, list[bytes]], bytes]) -> tuple[int, dict[bytes, list[bytes]], bytes]:
    status, fields, body = reply
    return status, {name: fields[name] for name in fields if name != b"content-length"}, body


@pytest.mark.filterwarnings("ignore:twisted.web.resource._UnsafeNoResource")  # by which Twisted itself says 404
@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("name", NAMES)
def test_a_resource_answers_as_on_a_stock_site(name, how):
    data, bodiless = ASKED[how](name), how == "HEAD"
    (stock,), (own,) = (kind(tree()).send(data).replies(bodiless=bodiless) for kind in (Stock, Own))
    assert lengths_aside(own) == lengths_aside(stock)
    if name not in (b"empty", b"unmeasured"):
        assert own[1].get(b"content-length") == stock[1].get(b"content-length")


@pytest.mark.parametrize("status", [204, 304])
def test_the_length_of_the_empty_body_of_a_204_or_304_is_not_told(status):
    def bare(asked: Any) -> bytes:
        asked.setResponseCode(status)
        return b""

    assert b"Content-Length" not in Own(Rendered(bare)).send(request()).wire.written


def test_a_reason_phrase_is_not_the_resources_to_write():
    def evil(asked: Any) -> bytes:
        asked.setResponseCode(200, b"OK\r\nX-Evil: yes")
        return b""

    assert b"Evil" not in Own(Rendered(evil)).send(request()).wire.written


@pytest.mark.parametrize("kind", [Stock, Own])
@pytest.mark.parametrize(("data", "closes"), [(request(), False), (ASKED["last GET"](b""), True), (OLD % b"", True)])
def test_a_connection_is_kept_or_closed_as_the_client_asked(kind, data, closes):
    end = kind(Rendered(lambda _: b"ok")).send(data)
    assert end.wire.closed == closes
    if not closes:
        assert len(end.send(data).replies()) == 2


@pytest.mark.parametrize("kind", [Stock, Own])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_reply_may_come_later(kind, method):
    resource = Waiting()
    end = kind(resource).send(request(method))
    assert end.replies() == []
    (asked,) = resource.requests
    asked.setHeader(b"Content-Type", b"text/plain")
    asked.write(b"one ")
    end.turn()
    asked.write(b"two")
    asked.finish()
    (reply,) = end.turn().replies(bodiless=method == b"HEAD")
    assert reply == (200, {b"content-type": [b"text/plain"]}, b"" if method == b"HEAD" else b"one two")
    assert resource.ended == ["finished"]


def test_what_is_written_leaves_before_the_reply_is_complete():
    resource = Waiting()
    end = Own(resource).send(request())
    resource.requests[0].write(b"one")
    assert end.turn().wire.written.endswith(b"3\r\none\r\n")
    resource.requests[0].write(b"two")
    assert end.wire.written.endswith(b"3\r\ntwo\r\n")


def test_pieces_of_one_turn_go_out_whole():
    resource = Waiting()
    end = Own(resource).send(request())
    resource.requests[0].write(b"one")
    resource.requests[0].write(b"two")
    resource.requests[0].finish()
    assert b"Content-Length: 6\r\n" in end.turn().wire.written


@pytest.mark.parametrize("kind", [Stock, Own])
def test_pipelined_requests_are_answered_in_order(kind):
    resource = Waiting()
    end = kind(resource).send(request(b"GET", b"/a") + request(b"GET", b"/b"))
    assert [asked.uri for asked in resource.requests] == [b"/a"]
    for _ in range(2):
        asked = resource.requests[-1]
        asked.write(asked.uri)
        asked.finish()
        end.turn()
    assert [body for _, _, body in end.replies()] == [b"/a", b"/b"]


@pytest.mark.parametrize("kind", [Stock, Own])
@pytest.mark.parametrize("begun", [False, True])
def test_a_resource_is_told_that_its_client_has_left(kind, begun):
    resource, producer = Waiting(), Pushing()
    end = kind(resource).send(request())
    resource.requests[0].registerProducer(producer, True)
    if begun:
        resource.requests[0].write(b"one")
        end.turn()
    end.leave()
    assert resource.ended == ["left"]
    assert producer.calls[-1] == "stop"
    resource.requests[0].write(b"dropped")
    with pytest.raises(RuntimeError, match="after its connection was lost"):
        resource.requests[0].finish()


@pytest.mark.parametrize("kind", [Stock, Own])
def test_a_producer_is_paused_while_the_client_does_not_read(kind):
    resource, producer = Waiting(), Pushing()
    end = kind(resource, stalled=True).send(request())
    asked = resource.requests[0]
    asked.registerProducer(producer, True)
    asked.write(b"x" * 10)
    assert end.turn().wire.unsent > 0
    assert "pause" not in producer.calls
    asked.write(b"x" * (BUFFER_BYTES + 1))
    assert producer.calls[-1] == "pause"
    end.wire.drain()
    assert producer.calls[-1] == "resume"
    asked.write(b"end")
    asked.unregisterProducer()
    asked.finish()
    assert end.turn().replies()[0][2].endswith(b"xend")


def test_a_push_producer_that_comes_while_the_client_does_not_read_is_paused_at_once():
    resource, producer = Waiting(), Pushing()
    end = Own(resource, stalled=True).send(request())
    resource.requests[0].write(b"x")
    end.turn()
    resource.requests[0].write(b"x" * (BUFFER_BYTES + 1))
    resource.requests[0].registerProducer(producer, True)
    assert producer.calls == ["pause"]


def test_what_is_written_without_a_producer_waits_and_arrives_whole():
    resource = Waiting()
    end = Own(resource, stalled=True).send(request())
    for number in range(20):
        resource.requests[0].write(b"%02d" % number * 10_000)
        end.turn()
    resource.requests[0].finish()
    assert end.turn().wire.unsent < 2 * BUFFER_BYTES
    for _ in range(20):
        end.wire.drain()
    assert end.replies()[0][2] == b"".join(b"%02d" % number * 10_000 for number in range(20))


class Pulled:
    """A pull producer of ten pieces."""

    def __init__(self, asked: Any) -> None:
        self.asked, self.left, self.stopped = asked, 10, False

    def resumeProducing(self) -> None:
        self.left -= 1
        self.asked.write(b"x" * 20_000)
        if not self.left:
            self.asked.unregisterProducer()
            self.asked.finish()

    def stopProducing(self) -> None:
        self.stopped = True


def pulled(*, stalled: bool = False) -> tuple[Own, Pulled]:
    resource = Waiting()
    end = Own(resource, stalled=stalled).send(request())
    producer = Pulled(resource.requests[0])
    resource.requests[0].registerProducer(producer, False)
    return end, producer


def test_a_pull_producer_is_asked_until_it_has_no_more():
    end, _ = pulled()
    for _ in range(4):
        end.turn()
    assert len(end.replies()[0][2]) == 200_000


def test_a_pull_producer_is_not_asked_while_the_client_does_not_read():
    end, producer = pulled(stalled=True)
    for _ in range(10):
        end.turn()
    assert producer.left == 6
    for _ in range(20):
        end.wire.drain()
        end.turn()
    assert len(end.replies()[0][2]) == 200_000


def test_a_pull_producer_whose_client_leaves_is_stopped():
    end, producer = pulled()
    end.leave()
    left = producer.left
    end.turn()
    assert (producer.left, producer.stopped) == (left, True)


def test_a_pull_producer_that_fails_cuts_the_reply(logged_failures):
    end, producer = pulled()
    del producer.left
    end.turn()
    assert end.replies()[0][0] == 500
    assert [failure.type for failure in logged_failures] == [AttributeError]
    logged_failures.clear()


# errors


def failing(asked: Any) -> bytes:
    raise ZeroDivisionError("secret detail")


def failing_halfway(asked: Any) -> bytes:
    asked.write(b"half of it")
    raise ZeroDivisionError("secret detail")


def failing_with_a_producer(asked: Any) -> bytes:
    asked.registerProducer(Pushing(), True)
    raise ZeroDivisionError("secret detail")


def mistyped(asked: Any) -> str:
    return "secret detail"


def of_no_length(asked: Any) -> bytes:
    asked.setHeader(b"Content-Length", b"+5")
    asked.write(b"hello")
    return NOT_DONE_YET


def short(asked: Any) -> int:
    asked.setHeader(b"Content-Length", b"10")
    asked.write(b"hello")
    asked.finish()
    return NOT_DONE_YET


def interim(asked: Any) -> int:
    asked.setResponseCode(101)
    asked.finish()
    return NOT_DONE_YET


@pytest.mark.parametrize(
    "render", [failing, failing_halfway, failing_with_a_producer, mistyped, of_no_length, short, interim]
)
def test_a_failing_resource_is_an_internal_error_and_tells_nothing(render, logged_failures):
    end = Own(Rendered(render)).send(request() + request())
    assert [(status, fields[b"content-type"]) for status, fields, _ in end.replies()] == [
        (500, [b"application/problem+json"])
    ] * 2
    assert b"secret" not in end.wire.written
    assert [outcome.trace.reason for outcome in end.outcomes] == ["internal-error"] * 2
    assert len(logged_failures) == 2
    logged_failures.clear()


def test_a_resource_may_refuse():
    def refusing(asked: Any) -> bytes:
        raise refuse("tier-required", "No.")

    end = Own(Rendered(refusing)).send(request())
    assert (end.replies()[0][0], end.outcomes[0].trace.reason) == (403, "tier-required")


def test_a_method_that_a_resource_does_not_know_is_a_problem_that_names_those_it_does():
    def picky(asked: Any) -> bytes:
        raise UnsupportedMethod([b"GET"])

    (reply,) = Own(Rendered(picky)).send(request(b"POST")).replies()
    assert (reply[0], reply[1][b"allow"], reply[1][b"content-type"]) == (405, [b"GET"], [b"application/problem+json"])


def test_a_failure_that_comes_later_is_an_internal_error_too(logged_failures):
    resource = Waiting()
    end = Own(resource).send(request())
    try:
        failing(None)
    except ZeroDivisionError:
        resource.requests[0].processingFailed(Failure())
    assert end.turn().replies()[0][0] == 500
    assert resource.ended == ["finished"]
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


def test_a_failure_within_the_reply_cuts_it(logged_failures):
    resource = Waiting()
    end = Own(resource).send(request())
    resource.requests[0].write(b"half")
    end.turn()
    resource.requests[0].processingFailed(Failure(ZeroDivisionError()))
    assert end.turn().wire.aborted
    assert not end.wire.written.endswith(b"0\r\n\r\n")
    assert (end.outcomes[0].trace.reason, end.outcomes[0].trace.cause) == ("cut", "resource-failed")
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


@pytest.mark.parametrize("begun", [False, True])
def test_a_resource_may_reset_the_connection(begun):
    resource = Waiting()
    end = Own(resource).send(request())
    if begun:
        resource.requests[0].write(b"half")
        end.turn()
    resource.requests[0].loseConnection()
    assert end.wire.aborted
    end.turn()
    assert resource.ended == ["left"]
    end.leave()
    assert [outcome.status for outcome in end.outcomes] == [200 if begun else 499]


def test_a_reply_that_is_finished_on_a_reset_connection_goes_nowhere():
    resource = Waiting()
    end = Own(resource).send(request())
    resource.requests[0].loseConnection()
    resource.requests[0].write(b"too late")
    resource.requests[0].finish()
    end.turn().leave()
    assert (end.wire.written, resource.ended) == (b"", ["finished"])
    assert [outcome.status for outcome in end.outcomes] == [499]


# bodies of requests, and outcomes


def test_a_body_over_the_cap_is_refused_and_never_seen():
    for framing in (b"Content-Length: 1001", b"Transfer-Encoding: chunked"):
        resource = Waiting()
        end = Own(resource).send(request(b"POST", b"/", framing) + b"3e9\r\n" + b"x" * (MAX_BODY_BYTES + 1) + b"\r\n")
        assert (end.replies()[0][0], end.outcomes[0].trace.reason) == (413, "body-too-large")
        assert resource.requests == []


def test_a_body_may_come_slowly_and_is_asked_for():
    end = Own(Page()).send(request(b"POST", b"/", b"Expect: 100-continue", b"Content-Length: 4"), b"ab", b"cd")
    interim, _, final = end.wire.written.partition(b"\r\n\r\n")
    assert interim == b"HTTP/1.1 100 Continue"
    assert final.endswith(b"- dcba")


def test_a_client_that_leaves_within_its_body_never_reaches_the_resource():
    resource = Waiting()
    end = Own(resource).send(request(b"POST", b"/", b"Content-Length: 4"))
    end.leave()
    assert resource.requests == []
    assert end.outcomes[0].status == 499


def test_every_reply_is_the_gateways_own_and_has_an_outcome():
    end = Own(tree()).send(request(b"GET", b"/data", b"X-Request-ID: caller-id-1"))
    written = end.wire.written
    assert b"\r\nX-Request-ID: caller-id-1\r\n" in written
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in written
    assert b"TwistedWeb" not in written
    assert written.count(b"\r\nDate: ") == 1
    (outcome,) = end.outcomes
    assert (outcome.status, outcome.bytes_out, outcome.trace.reason) == (200, 5, None)


def test_a_client_that_leaves_within_the_reply_has_an_outcome():
    resource = Waiting()
    end = Own(resource).send(request())
    resource.requests[0].write(b"half")
    end.turn()
    end.leave()
    (outcome,) = end.outcomes
    assert (outcome.status, outcome.bytes_out, outcome.trace.reason) == (200, 4, "client-left")


@pytest.mark.parametrize("begun", [False, True])
def test_a_lost_connection_goes_with_its_resources_request(begun):
    def lost() -> object:
        resource = Waiting()
        end = Own(resource).send(request())
        if begun:
            resource.requests[0].write(b"half")
            end.turn()
        end.leave()
        end.turn()
        resource.requests.clear()
        channel, end.protocol = end.protocol, None
        return channel

    assert goes_by_itself(lost)
