"""`bakerygw audit`: what is kept about one user, for the user to have or for nobody to know any more."""

import argparse
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TextIO

import orjson
from twisted.internet.task import react

from bakerygw.auditing import KeptTrail, audit_path, kept_trail
from bakerygw.config.settings import Settings
from bakerygw.core.claims import is_id
from bakerygw.ports import AuditStore, Ledger, StoreUnavailable
from bakerygw.stores.audit_file import is_there
from bakerygw.telemetry.entries import document_of, opened
from bakerygw.telemetry.logs import escape_breaks
from bakerygw.telemetry.subjects import Subject, name_of

TIMEOUT_S: Final = 10.0
WHOSE: Final = "run it with the gateway's own settings: its environment or --config, and its working directory"
LEDGERS: Final[tuple[Ledger, ...]] = ("events", "refusals")


def add_audit(command: argparse.ArgumentParser) -> None:
    """The options of `bakerygw audit`."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("export", "print all that the audit trail holds about a user, as JSON lines"),
        ("erase", "make all that the audit trail holds about a user nobody's, for good"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("--user", metavar="ID", type=_id, required=True, help="user id")
        action.add_argument("--config", metavar="FILE", help="TOML file; the environment wins over it")
        action.add_argument("--demo", action="store_true", help="the trail of the demo, started in this folder")


def run_audit(
    options: argparse.Namespace, settings: Settings, *, environ: Mapping[str, str], out: TextIO, err: TextIO
) -> int:
    """Carry out one action; the exit status: 0 done, 1 not (nothing known, or the store did not answer)."""
    act = {"export": export, "erase": erase}[options.action]
    place = _place(settings, environ)
    if settings.redis_host is None and not is_there(audit_path(settings, environ)):
        # With the settings of another process "nothing is kept" would be no answer.
        print(f"bakerygw audit {options.action}: {place} is not there, or may not be read; {WHOSE}", file=err)
        return 1

    async def work(reactor: Any) -> int:
        kept = _kept(settings, reactor, environ)
        try:
            await kept.open()
            return await act(kept.store, options.user, out=out, err=err)
        except StoreUnavailable as error:
            print(f"bakerygw audit {options.action}: {place} did not answer: {error}", file=err)
            return 1
        finally:
            await kept.close()

    return _run(work)


async def export(store: AuditStore, user_id: str, *, out: TextIO, err: TextIO) -> int:
    """Print who the user is in logs and entries, then every entry, oldest first. Raises `StoreUnavailable`."""
    subject = await _subject(store, user_id)
    if subject is None:
        print(f"nothing is kept about {user_id}, or it was erased", file=err)
        return 1
    entries: dict[str, dict[str, object]] = {}
    async for data in _all(store):
        entry = opened(data, subject)
        if entry is not None:
            entries[str(entry.get("id"))] = entry  # what was written twice has the same id
    print(_line({"user_id": user_id, "pseudonym": subject.pseudonym, "entries": len(entries)}), file=out)
    for entry in sorted(entries.values(), key=lambda entry: str(entry.get("when"))):
        print(_line(entry), file=out)
    return 0


async def erase(store: AuditStore, user_id: str, *, out: TextIO, err: TextIO) -> int:
    """Erase the user's key. Raises `StoreUnavailable`."""
    subject = await _subject(store, user_id)
    if subject is None or not await store.erase(subject.name):
        print(f"nothing is kept about {user_id}, or it was erased before", file=err)
        return 1
    left: set[object] = set()
    async for data in _all(store):
        document = document_of(data)
        if document is not None and document.get("user") == subject.pseudonym:
            left.add(document.get("id"))
    told = f"1 entry about {user_id} is" if len(left) == 1 else f"{len(left)} entries about {user_id} are"
    print(f"erased: {told} nobody's now, and so is the pseudonym in the logs", file=out)
    return 0


async def _subject(store: AuditStore, user_id: str) -> Subject | None:
    key = await store.key(name_of(user_id))
    return None if key is None else Subject(user_id, key)


async def _all(store: AuditStore) -> AsyncIterator[bytes]:
    for ledger in LEDGERS:
        async for data in store.entries(ledger):
            yield data


def _place(settings: Settings, environ: Mapping[str, str]) -> str:
    if settings.redis_host is None:
        return f"the trail in {audit_path(settings, environ)}"
    return f"the trail in Redis at {settings.redis_host}:{settings.redis_port}"


def _kept(settings: Settings, reactor: Any, environ: Mapping[str, str]) -> KeptTrail:
    return kept_trail(settings, reactor, environ=environ, erased=lambda _: None, timeout_s=TIMEOUT_S)


def _run(work: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    status = [1]
    unread: list[BrokenPipeError] = []

    async def main(reactor: Any) -> None:
        try:
            status[0] = await work(reactor)
        except BrokenPipeError as error:  # the reactor would take it for a defect
            unread.append(error)

    with suppress(SystemExit):  # it always ends so
        react(main)
    if unread:
        raise unread[0]
    return status[0]


def _line(document: Mapping[str, object]) -> str:
    return escape_breaks(orjson.dumps(document)).decode()


def _id(text: str) -> str:
    if not is_id(text):
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to 64 letters, digits and . _ -")
    return text
