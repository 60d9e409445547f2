"""What a caller learns while there is nothing to check a token with."""

import pytest

from bakerygw.core.claims import Claims
from bakerygw.ports import CredentialsUnavailable
from tests.edge.port_fakes import USER, Stage

SALES = b"/api/v1/sales/today"


class NoKeys:
    """`Credentials` that lack every key, but remember `known`."""

    def known(self, secret: bytes) -> Claims | None:
        return USER if secret == b"known" else None

    def peek(self, secret: bytes) -> Claims | None:
        return USER

    async def verify(self, secret: bytes) -> Claims:
        raise CredentialsUnavailable("no key set")


@pytest.fixture
def stage() -> Stage:
    return Stage(credentials={"bearer": NoKeys()})


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_token_that_can_not_be_checked_is_not_called_bad(stage: Stage, method: bytes) -> None:
    answer = stage.ask(SALES, method=method, token=b"good")
    problem = answer.problem()
    assert (answer.status, problem["code"], problem["retry_after"]) == (503, "state-unavailable", 5)
    assert "can't be checked at the moment" in problem["detail"]
    assert answer.headers[b"retry-after"] == [b"5"]
    assert b"www-authenticate" not in answer.headers
    assert stage.services.requests == []
    assert stage.notes.auth == []
    assert stage.outcome.trace.cause == "keys"


def test_known_tokens_and_public_routes_go_on(stage: Stage) -> None:
    assert stage.ask(SALES, token=b"known").status == 200
    assert stage.ask(b"/api/v1/auth/login", method=b"POST").status == 200
