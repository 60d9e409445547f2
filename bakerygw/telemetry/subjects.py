"""The people that entries are about, each under a key of their own: with the key gone, so is whom they were about.

Crypto-shredding: an entry names its user by a pseudonym, the HMAC of the user's id under that user's key, and holds
what is personal sealed (AES-256-GCM) under the same key. Erasing the key leaves every entry whole, and nobody's.
"""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bakerygw.core.recent import Recent
from bakerygw.ports import AuditStore

KEY_BYTES: Final = 32
MAX_SUBJECTS: Final = 20_000
"""About 10 MB; the least recently used go first."""
MAX_AGE_S: Final = 300.0
"""How long a key is used without being read again, should nobody have told that it was erased."""
_NONCE_BYTES: Final = 12


def name_of(user_id: str) -> str:
    """Under which name the store has this user's key: SHA-256 in hexadecimal."""
    return hashlib.sha256(b"bakerygw user " + user_id.encode()).hexdigest()


class Subject:
    """One user, as entries and log lines know them."""

    __slots__ = ("_seal", "name", "pseudonym")

    def __init__(self, user_id: str, key: bytes) -> None:
        self.name = name_of(user_id)
        self.pseudonym = hmac.digest(key, b"pseudonym of " + user_id.encode(), "sha256").hex()[:32]
        self._seal = hmac.digest(key, b"seal", "sha256")

    def seal(self, data: bytes, about: str) -> str:
        """`data` for nobody without the key, bound to the entry with the id `about`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return urlsafe_b64encode(nonce + AESGCM(self._seal).encrypt(nonce, data, about.encode())).decode("ascii")

    def open(self, sealed: str, about: str) -> bytes:
        """What was sealed. Raises ValueError if it was not sealed so."""
        data = urlsafe_b64decode(sealed)
        try:
            return AESGCM(self._seal).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], about.encode())
        except InvalidTag:
            raise ValueError("not sealed under this key") from None


class Seconds(Protocol):
    """A monotonic clock."""

    def seconds(self) -> float:
        """The time in seconds."""


class Subjects:
    """Users' keys out of the store, remembered for a while; bounded."""

    def __init__(self, store: AuditStore, clock: Seconds, *, max_subjects: int = MAX_SUBJECTS) -> None:
        self._store, self._clock = store, clock
        self._held: Recent[str, tuple[Subject, float]] = Recent(max_subjects)
        self._forgotten = 0

    def known(self, user_id: str) -> Subject | None:
        """The user, if their key is here."""
        found = self._held.get(user_id)
        if found is None or self._clock.seconds() >= found[1]:
            return None
        self._held.use(user_id)
        return found[0]

    async def of(self, user_ids: Collection[str]) -> Mapping[str, Subject]:
        """These users, with keys made for those who have none yet; who has an unusable one is left out.

        Raises `StoreUnavailable`.
        """
        found = {user_id: subject for user_id in user_ids if (subject := self.known(user_id)) is not None}
        names = {name_of(user_id): user_id for user_id in user_ids if user_id not in found}
        if not names:
            return found
        forgotten = self._forgotten
        keys = await self._store.keys({name: secrets.token_bytes(KEY_BYTES) for name in names})
        for name, key in keys.items():
            if name in names and len(key) == KEY_BYTES:
                subject = found[names[name]] = Subject(names[name], key)
                if forgotten == self._forgotten:  # else it may be one that was erased meanwhile
                    self._held.put(names[name], (subject, self._clock.seconds() + MAX_AGE_S))
        return found

    def forget(self, name: str) -> None:
        """The key with this name was erased."""
        self._forgotten += 1
        for user_id, (subject, _) in self._held.items():
            if subject.name == name:
                self._held.drop(user_id)

    def doubt(self) -> None:
        """The store may have lost what it held, such as a Redis that was started anew: read every key again."""
        self._forgotten += 1
        for user_id in list(self._held):
            self._held.drop(user_id)
