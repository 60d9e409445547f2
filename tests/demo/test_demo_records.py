"""The demo's collections: what is there, what writes do, and who sees them."""

from typing import Any

import pytest
from demo_calls import NOW, answer_of

from bakerygw.demo.accounts import demo_directory
from bakerygw.demo.data import COLLECTIONS
from bakerygw.demo.records import MAX_RECORDS, Records, RecordService, with_echo
from bakerygw.demo.tenants import TenantService

TENANT, OTHER = "tenant-a", "tenant-b"
SALE = {"product": "Brioche", "quantity": 3}


def service_of(name: str) -> RecordService:
    collections = [c for c in COLLECTIONS if c.service == name]
    shelves = [
        Records(c, now=lambda: NOW, seed="fixed", seeded=frozenset({TENANT, OTHER, "demo"})) for c in collections
    ]
    return RecordService(collections[0].path.split("/")[0], shelves)


@pytest.fixture
def sales() -> RecordService:
    return service_of("sales")


def ask(service: Any, method: str, path: str, body: Any = None, tenant: str = TENANT, **headers: str) -> Any:
    return answer_of(service, method, f"/api/v1/{path}", body, X_Tenant_Id=tenant, **headers)


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: str(collection.path))
def test_every_collection_begins_with_records_that_pass_its_own_rules(collection: Any) -> None:
    service = service_of(collection.service)
    listed = ask(service, "GET", collection.path)
    assert listed.status == 200
    assert listed.body["total"] > 0
    record = listed.body["items"][0]
    assert ask(service, "GET", f"{collection.path}/{record['id']}").body == record
    assert ask(service, "PUT", f"{collection.path}/{record['id']}", record).status == 200


def test_a_new_record_has_an_address_and_comes_first_in_the_list(sales: RecordService) -> None:
    made = ask(sales, "POST", "sales", SALE, X_User_Email="ana@espiga.example")
    assert made.status == 201
    assert made.headers == (("Location", f"/api/v1/sales/{made.body['id']}"),)
    assert made.body | SALE == made.body
    assert (made.body["tenant_id"], made.body["created_by"]) == (TENANT, "ana@espiga.example")
    assert ask(sales, "GET", "sales?limit=1").body["items"] == [made.body]


def test_what_one_tenant_writes_no_other_sees(sales: RecordService) -> None:
    made = ask(sales, "POST", "sales", SALE)
    before = ask(sales, "GET", "sales", tenant=OTHER).body
    assert all(item["product"] != "Brioche" for item in before["items"])
    for method, body in (("GET", None), ("PUT", SALE), ("PATCH", {}), ("DELETE", None)):
        assert ask(sales, method, f"sales/{made.body['id']}", body, tenant=OTHER).status == 404
    assert ask(sales, "GET", f"sales/{made.body['id']}").status == 200


def test_demo_sessions_of_one_tenant_are_apart(sales: RecordService) -> None:
    def session(name: str) -> dict[str, str]:
        return {"tenant": "demo", "X_Is_Demo": "true", "X_Demo_Session_Id": name}

    made = ask(sales, "POST", "sales", SALE, **session("one"))
    assert ask(sales, "GET", f"sales/{made.body['id']}", **session("one")).status == 200
    assert ask(sales, "GET", f"sales/{made.body['id']}", **session("two")).status == 404


def test_put_replaces_patch_merges_delete_removes(sales: RecordService) -> None:
    made = ask(sales, "POST", "sales", SALE | {"channel": "online"}).body
    path = f"sales/{made['id']}"
    assert ask(sales, "PATCH", path, {"quantity": 9}).body == made | {"quantity": 9}
    replaced = ask(sales, "PUT", path, SALE).body
    assert "channel" not in replaced
    assert replaced["created_at"] == made["created_at"]
    assert ask(sales, "DELETE", path).status == 204
    assert ask(sales, "GET", path).status == 404


def test_the_service_alone_sets_id_tenant_and_author(sales: RecordService) -> None:
    forged = {"id": "mine", "tenant_id": OTHER, "created_by": "someone"}
    made = ask(sales, "POST", "sales", SALE | forged).body
    changed = ask(sales, "PATCH", f"sales/{made['id']}", forged).body
    for record in (made, changed):
        assert record["id"] not in ("mine", None)
        assert (record["tenant_id"], record["created_by"]) == (TENANT, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"product":"x","quantity":NaN}',
        b'{"product":"x","quantity":1e999}',
        b"[" * 20_000,
        {"product": "x"},
        {"product": " ", "quantity": 1},
        {"product": 5, "quantity": 1},
        {"product": "x", "quantity": -1},
        {"product": "x", "quantity": True},
        {"product": "x", "quantity": "1"},
    ],
)
def test_a_body_that_is_no_sale_is_400_and_leaves_nothing(sales: RecordService, body: Any) -> None:
    total = ask(sales, "GET", "sales").body["total"]
    assert ask(sales, "POST", "sales", body).status == 400
    assert ask(sales, "GET", "sales").body["total"] == total


def test_lists_come_in_pages(sales: RecordService) -> None:
    everything = ask(sales, "GET", "sales?limit=200").body["items"]
    assert ask(sales, "GET", "sales?limit=2&offset=3").body["items"] == everything[3:5]
    for query in ("limit=-1", "limit=x", "offset=1.5", "limit=99999999999"):
        assert ask(sales, "GET", f"sales?{query}").status == 400


def test_a_collection_is_bounded(sales: RecordService) -> None:
    for _ in range(MAX_RECORDS - ask(sales, "GET", "sales").body["total"]):
        ask(sales, "POST", "sales", SALE)
    assert ask(sales, "POST", "sales", SALE).status == 507


def test_without_the_gateway_there_is_no_tenant_and_no_data(sales: RecordService) -> None:
    assert answer_of(sales, "GET", "/api/v1/sales").status == 400


def test_a_bakery_that_has_just_registered_begins_with_nothing(sales: RecordService) -> None:
    assert ask(sales, "GET", "sales", tenant="new").body == {"items": [], "total": 0}


def test_unknown_paths_are_404_and_unknown_methods_405(sales: RecordService) -> None:
    assert ask(sales, "GET", "sales/none").status == 404
    assert ask(sales, "GET", "sales/a/b").status == 404
    assert answer_of(sales, "GET", "/api/v1/inventory", X_Tenant_Id=TENANT).status == 404
    refused = ask(sales, "DELETE", "sales")
    assert (refused.status, refused.headers) == (405, (("Allow", "GET, POST"),))


def test_a_service_of_several_collections_lists_them() -> None:
    listed = ask(service_of("external"), "GET", "external")
    assert listed.body == {"collections": ["/api/v1/external/weather", "/api/v1/external/holidays"]}


def test_echo_shows_the_headers_and_hides_what_makes_a_token_valid() -> None:
    external = with_echo(service_of("external"))
    answer = ask(
        external, "GET", "external/echo?a=1", Authorization="Bearer head.payload.signature", X_User_Role="owner"
    )
    assert answer.body["request_line"] == "GET /api/v1/external/echo?a=1 HTTP/1.1"
    assert ["X-User-Role", "owner"] in answer.body["headers"]
    assert ["Authorization", "Bearer head.payload.(signature)"] in answer.body["headers"]


class TestTenants:
    """The tenant service."""

    def setup_method(self) -> None:
        self.directory = demo_directory(lambda: NOW)
        self.service = TenantService(self.directory, lambda: NOW)
        self.account = next(a for a in self.directory.accounts if a.email == "jordi@martin.example")
        self.tenant_id = self.account.tenant_id

    def ask(self, method: str, below: str = "", body: Any = None) -> Any:
        return ask(self.service, method, f"tenants/{self.tenant_id}{below}", body, tenant=self.tenant_id)

    def test_the_list_has_the_callers_own_tenant_and_those_of_its_access(self) -> None:
        listed = ask(self.service, "GET", "tenants", tenant=self.tenant_id, X_User_Id=self.account.user_id)
        assert [item["name"] for item in listed.body["items"]] == [
            "Boulangerie Martin",
            "Panadería La Espiga",
            "Demo Bakery",
        ]

    def test_status_is_the_subscription_as_tokens_state_it(self) -> None:
        status = self.ask("GET", "/subscription/status")
        assert (
            status.body == self.ask("GET", "/subscription").body == self.directory.tenants[self.tenant_id].subscription
        )
        assert set(status.body) == {"tier", "status", "valid_until"}

    def test_a_tenant_other_than_the_checked_one_is_404(self) -> None:
        other = self.account.access[0].tenant_id
        assert ask(self.service, "GET", f"tenants/{other}", tenant=self.tenant_id).status == 404
        assert answer_of(self.service, "GET", f"/api/v1/tenants/{other}").status == 404

    def test_a_subscription_can_be_changed_to_an_instant_in_utc(self) -> None:
        wanted = {"tier": "professional", "status": "past_due", "valid_until": "2027-01-01T01:00:00+01:00"}
        changed = wanted | {"valid_until": "2027-01-01T00:00:00Z"}
        assert self.ask("PUT", "/subscription", wanted).body == changed
        assert self.ask("GET", "/subscription/status").body == changed

    @pytest.mark.parametrize(
        "change",
        [{"tier": "gold"}, {"status": ["active"]}, {"valid_until": "soon"}, {"valid_until": "2027-02-30T00:00:00Z"}],
    )
    def test_a_subscription_that_cannot_be_is_400(self, change: dict[str, Any]) -> None:
        before = self.ask("GET", "/subscription").body
        assert self.ask("PUT", "/subscription", change).status == 400
        assert self.ask("GET", "/subscription").body == before

    def test_name_and_city_can_be_changed(self) -> None:
        assert self.ask("PATCH", "", {"name": "Chez Martin", "tier": "enterprise"}).body["name"] == "Chez Martin"
        assert self.ask("GET").body["subscription"]["tier"] == "starter"
        assert self.ask("PATCH", "", {"name": ""}).status == 400
