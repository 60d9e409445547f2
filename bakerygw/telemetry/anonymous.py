"""Log lines that tell nobody who it was: users by pseudonym, addresses by network."""

from collections.abc import Callable
from typing import ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.privacy import truncated
from bakerygw.core.recent import Recent
from bakerygw.ports import StoreUnavailable
from bakerygw.telemetry.subjects import Subjects

MAX_WAITING: Final = 1000
"""Lines that wait for their user's key; further ones are written without a user."""
SPARE_S: Final = 1.0
"""How long after a failure no key is asked for."""
MAX_ADDRESSES: Final = 10_000

Fields = dict[str, object]
Put = Callable[[Fields], None]


class Anonymous:
    """Makes the fields of log lines anonymous. A user whose key cannot be had is left out; never is the id written."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, subjects: Subjects, clock: IReactorTime) -> None:
        self._subjects, self._clock = subjects, clock
        self._networks: Recent[str, str] = Recent(MAX_ADDRESSES)
        self._waiting: list[tuple[str, Fields, Put]] = []
        self._asked: list[tuple[str, Fields, Put]] = []
        self._asking = False
        self._spare_until = 0.0

    def tell(self, fields: Fields, put: Put) -> None:
        """Hand the line of a request to `put`: at once, or when its user's key has been read, in a moment."""
        fields["client"] = self.client(str(fields["client"]))
        user_id = fields.get("user_id")
        if not isinstance(user_id, str):
            put(fields)
            return
        subject = self._subjects.known(user_id)
        if subject is not None:
            fields["user_id"] = subject.pseudonym
            put(fields)
        elif len(self._waiting) + len(self._asked) >= MAX_WAITING or self._clock.seconds() < self._spare_until:
            del fields["user_id"]
            put(fields)
        else:
            self._waiting.append((user_id, fields, put))
            self._ask()

    def record(self, fields: Fields) -> Fields:
        """Any other line, at once: a user whose key is not here is left out."""
        for name in ("client", "peer"):
            if isinstance(fields.get(name), str):
                fields[name] = self.client(str(fields[name]))
        user_id = fields.get("user_id")
        if user_id is None:
            return fields
        subject = self._subjects.known(str(user_id))
        if subject is None:
            del fields["user_id"]
        else:
            fields["user_id"] = subject.pseudonym
        for name in ("who", "by"):
            if fields.get(name) == user_id:
                del fields[name]
        return fields

    def client(self, address: str) -> str:
        """The network of an address, remembered."""
        found = self._networks.use(address)
        if found is None:
            found = truncated(address)
            self._networks.put(address, found)
        return found

    def close(self) -> None:
        """Write what waits, without users."""
        self._release()

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            Deferred.fromCoroutine(self._read_keys()).addErrback(self._failed)

    async def _read_keys(self) -> None:
        """Until nobody waits."""
        while self._waiting:
            self._asked, self._waiting = self._waiting, []
            try:
                await self._subjects.of({user_id for user_id, _, _ in self._asked})
            except StoreUnavailable:
                self._spare_until = self._clock.seconds() + SPARE_S
                break
            self._put_asked()
        self._asking = False
        self._release()

    def _failed(self, failure: Failure) -> None:
        self._asking = False
        self._release()
        self._log.failure("log.keys_failed", failure)

    def _release(self) -> None:
        self._put_asked()
        self._asked, self._waiting = self._waiting, []
        self._put_asked()

    def _put_asked(self) -> None:
        waiting, self._asked = self._asked, []
        for user_id, fields, put in waiting:
            subject = self._subjects.known(user_id)
            if subject is None:
                del fields["user_id"]
            else:
                fields["user_id"] = subject.pseudonym
            put(fields)
