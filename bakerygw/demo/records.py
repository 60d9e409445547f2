"""Collections of JSON records behind a service, kept apart by tenant and by demo session."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final
from uuid import uuid4

from bakerygw.demo.accounts import iso, stable_id
from bakerygw.demo.data import NUMBER, Collection, Record
from bakerygw.demo.web import Answer, Call, ServiceError, not_allowed, scope_of

MAX_RECORDS: Final = 2_000
"""Records in one collection of one tenant; 507 beyond it."""
MAX_SCOPES: Final = 500
"""Tenants and demo sessions remembered by one collection; the longest unused is forgotten first."""
PAGE: Final = 50
MAX_PAGE: Final = 200

SERVER_FIELDS: Final = ("id", "tenant_id", "created_at", "created_by")


class Records:
    """One collection: a shelf of records for each tenant, filled when it is first asked for."""

    def __init__(self, collection: Collection, *, now: Callable[[], float], seed: str, seeded: frozenset[str]) -> None:
        """`seeded`: tenants that begin with records of `collection.seed`; the others begin with none."""
        self._collection, self._now, self._seed, self._seeded = collection, now, seed, seeded
        self._shelves: dict[tuple[str, str], dict[str, Record]] = {}

    @property
    def path(self) -> tuple[str, ...]:
        """The segments below `/api/v1`."""
        return tuple(self._collection.path.split("/"))

    def answer(self, call: Call, item_id: str | None) -> Answer:
        """One call on the collection itself (`None`) or on one of its records."""
        shelf = self._shelf(call)
        if item_id is None:
            return self._collection_call(call, shelf)
        if item_id not in shelf:
            raise ServiceError(404, "there is no such record")
        return self._item_call(call, shelf, item_id)

    def _collection_call(self, call: Call, shelf: dict[str, Record]) -> Answer:
        if call.method == "GET":
            return _page(call, shelf)
        if call.method != "POST":
            raise not_allowed("GET", "POST")
        if len(shelf) >= MAX_RECORDS:
            raise ServiceError(507, "the demo keeps no more records here")
        record = self._new(call, self._checked(call.json()))
        shelf[str(record["id"])] = record
        return Answer(
            status=201, body=record, headers=(("Location", f"/api/v1/{self._collection.path}/{record['id']}"),)
        )

    def _item_call(self, call: Call, shelf: dict[str, Record], item_id: str) -> Answer:
        current = shelf[item_id]
        kept = {name: current[name] for name in SERVER_FIELDS}
        match call.method:
            case "GET":
                return Answer(body=current)
            case "DELETE":
                del shelf[item_id]
                return Answer(status=204)
            case "PUT":
                shelf[item_id] = self._checked(call.json()) | kept
            case "PATCH":
                shelf[item_id] = self._checked(current | call.json()) | kept
            case _:
                raise not_allowed("GET", "PUT", "PATCH", "DELETE")
        return Answer(body=shelf[item_id])

    def _new(self, call: Call, fields: Record) -> Record:
        return {
            "id": str(uuid4()),
            **{name: value for name, value in fields.items() if name not in SERVER_FIELDS},
            "tenant_id": call.header("X-Tenant-Id"),
            "created_at": iso(self._now()),
            "created_by": call.header("X-User-Email"),
        }

    def _checked(self, fields: Record) -> Record:
        for name, kind in self._collection.required.items():
            value = fields.get(name)
            if kind == NUMBER:
                good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            else:
                good = isinstance(value, str) and bool(value.strip())
            if not good:
                raise ServiceError(400, f"{name} must be a {kind}")
        return fields

    def _shelf(self, call: Call) -> dict[str, Record]:
        key = scope_of(call.header)
        if key is None:
            raise ServiceError(400, "no X-Tenant-Id; call through the gateway")
        tenant_id, _ = key
        shelf = self._shelves.pop(key, None)
        if shelf is None:
            shelf = self._filled(tenant_id) if tenant_id in self._seeded else {}
        self._shelves[key] = shelf
        if len(self._shelves) > MAX_SCOPES:
            del self._shelves[next(iter(self._shelves))]
        return shelf

    def _filled(self, tenant_id: str) -> dict[str, Record]:
        path, now = self._collection.path, self._now()
        chance = Random(f"{self._seed}/{tenant_id}/{path}")
        shelf: dict[str, Record] = {}
        for number, fields in enumerate(self._collection.seed(chance, now)):
            record_id = stable_id("record", f"{number}.{path}.{tenant_id}")
            made = {"tenant_id": tenant_id, "created_at": iso(now), "created_by": None}
            shelf[record_id] = {"id": record_id, **fields, **made}
        return shelf


def _page(call: Call, shelf: dict[str, Record]) -> Answer:
    limit, offset = call.number("limit", PAGE, MAX_PAGE), call.number("offset", 0, MAX_RECORDS)
    newest_first = list(reversed(shelf.values()))
    return Answer(body={"items": newest_first[offset : offset + limit], "total": len(shelf)})


class RecordService:
    """A service made of one or several collections, and of single resources beside them."""

    def __init__(self, root: str, collections: Sequence[Records]) -> None:
        """`root` is the segment below `/api/v1` that belongs to the service."""
        self._root = root
        self._by_path = {records.path: records for records in collections}

    def __call__(self, call: Call) -> Answer:
        """Answer one call under `/api/v1/{root}`."""
        if call.path[:3] != ("api", "v1", self._root):
            raise ServiceError(404, "there is no such resource")
        below = call.path[2:]
        if below in self._by_path:
            return self._by_path[below].answer(call, None)
        if below[:-1] in self._by_path:
            return self._by_path[below[:-1]].answer(call, below[-1])
        if below == (self._root,):
            return self._index(call)
        raise ServiceError(404, "there is no such resource")

    def _index(self, call: Call) -> Answer:
        if call.method != "GET":
            raise not_allowed("GET")
        return Answer(body={"collections": ["/api/v1/" + "/".join(path) for path in self._by_path]})


def echo(call: Call) -> Answer:
    """What the service was sent, for seeing what the gateway adds; the token's signature is left out."""
    fields = [[name, _masked(name, value)] for name, value in call.headers]
    return Answer(body={"request_line": f"{call.method} {call.target} HTTP/1.1", "headers": fields})


def _masked(name: str, value: str) -> str:
    if name.lower() != "authorization":
        return value
    return value.rpartition(".")[0] + ".(signature)" if "." in value else "(masked)"


def with_echo(service: RecordService) -> Callable[[Call], Answer]:
    """The service, with `/api/v1/external/echo` for every method."""

    def answer(call: Call) -> Answer:
        return echo(call) if call.path == ("api", "v1", "external", "echo") else service(call)

    return answer
