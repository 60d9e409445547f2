"""The part of the mirror that tells of which tenant another is a part."""

from collections.abc import Callable, Mapping

from bakerygw.core.hierarchy import ancestors_of
from bakerygw.core.values import value
from bakerygw.stores.mirror_table import TRUST_S, Epoch, Found, Read, Table, last_known


@value
class ParentsRead:
    """One read of a chain under way. Whom it leads by is not known before the answer."""

    at: float
    changes: int


class Parents:
    """Each tenant's parent ('' for none) as in Redis; chains are walked here. Moved by the `Mirror` it is in."""

    def __init__(self, size: int, epoch: Epoch) -> None:
        self._links: Table[str] = Table(size)
        self._epoch, self._changes = epoch, 0

    def held(self, tenant_id: str, now: float) -> tuple[str, ...] | None:
        """The tenant's ancestors, nearest first, if every link is here and true; else `None`."""
        epoch = self._epoch
        if now >= epoch.confirmed_at + TRUST_S:
            return None

        def true(name: str) -> str | None:
            found = self._links.true((name,), epoch, now)
            return None if found is None else found[name]

        return _walk(tenant_id, true)

    def last_known(self, tenant_id: str, now: float) -> tuple[str, ...] | None:
        """The ancestors by links that were true at most a minute ago and have not expired; else `None`."""
        links = self._links
        return _walk(tenant_id, lambda name: last_known(links.newest(name, links), now))

    def begin(self, now: float) -> ParentsRead:
        """Call it before a chain's read is sent."""
        return ParentsRead(at=now, changes=self._changes)

    def keep(self, read: ParentsRead, links: Mapping[str, Found[str]]) -> None:
        """Keep what the read has found, by tenant, unless any parent has changed since it began."""
        if read.changes != self._changes:
            return
        names = tuple(links)
        its = Read((), (), read.at, verified=True)
        self._links.begin(names, its)
        self._links.keep(its, links, self._epoch)
        self._links.end(names, its)

    def changed(self, tenant_id: str) -> None:
        """This tenant's parent is another one."""
        self._changes += 1
        self._links.drop(tenant_id)

    def clear(self) -> None:
        """Everything may have changed."""
        self._changes += 1
        self._links.clear()

    def renew(self, epoch: Epoch) -> None:
        """A new epoch begins: nothing is kept of what is being read now."""
        self._changes += 1
        self._epoch = epoch


def _walk(tenant_id: str, parent_of: Callable[[str], str | None]) -> tuple[str, ...] | None:
    """The ancestors; `None` if a link on the way is not known."""
    complete = True

    def known(name: str) -> str | None:
        nonlocal complete
        parent = parent_of(name)
        complete = complete and parent is not None
        return parent

    chain = ancestors_of(tenant_id, known)
    return chain if complete else None
