"""What a newcomer sees when the demo is up: addresses, accounts, and shell lines to paste."""

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bakerygw.demo.accounts import PASSWORD, Account, Tenant

WIDTH: Final = 150
SALE: Final = '{"product":"Ensaimada","quantity":12}'
SALE_SEEN: Final = '"product": "Ensaimada", "quantity": 12'
STATUS: Final = "-o /dev/null -w '%{http_code}\\n'"
"""Makes curl print the status alone."""
WHY: Final = "-w ' %{http_code}\\n'"
"""Makes curl print the status behind the body, where the shell function `why` expects it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One line for a POSIX shell. Lines build on the variables and functions of those before them."""

    title: str
    shell: str
    expect: str = ""
    """A text that the line prints, among others perhaps; empty where nothing is promised."""


def operators_token(admin_token_file: str | None) -> str:
    """What a shell makes the admin token of, within double quotes."""
    return "$ADMIN_TOKEN" if admin_token_file is None else f"$(cat {shlex.quote(admin_token_file)})"


def _line(title: str, shell: str, expect: str = "") -> Command:
    return Command(title=title, shell=shell, expect=expect)


def banner_commands(
    *, public_url: str, admin_url: str, admin_token_file: str | None, accounts: Sequence[Account]
) -> list[Command]:
    """Every line of the banner, in the order in which they are to be run; they need curl and sed.

    `accounts` are those of `DemoServices`. Without a token file the admin token is taken from `$ADMIN_TOKEN`.
    In all they sign in eight times and use up the limit of one account, the last.
    """
    tenant = {account.email.partition("@")[2].partition(".")[0]: account.tenant_id for account in accounts}
    token = operators_token(admin_token_file)
    return [
        *_preparation(public_url.rstrip("/"), admin_url.rstrip("/"), tenant),
        *_work(),
        *_refusals(),
        *_operation(token),
        *_excess(),
    ]


def _as(variable: str) -> str:
    return f'-H "Authorization: Bearer ${variable}"'


def _preparation(public_url: str, admin_url: str, tenant: Mapping[str, str]) -> Iterator[Command]:
    body = rf'"{{\"email\":\"$1\",\"password\":\"{PASSWORD}\"}}"'
    ids = " ".join(f"{name.upper()}={tenant[name]}" for name in ("espiga", "martin", "demo"))
    yield _line(
        "first these four lines: names, and functions that sign in and that show why a request was refused", ids
    )
    yield _line(
        "",
        f"GW={shlex.quote(public_url)} ADMIN={shlex.quote(admin_url)} "
        f"J='Content-Type: application/json' SALE={shlex.quote(SALE)}",
    )
    yield _line(
        "",
        f"""login() {{ curl -s -H "$J" -d {body} $GW/api/v1/auth/login"""
        r""" | sed 's/.*"access_token": *"\([^"]*\)".*/\1/'; }""",
    )
    yield _line("", r"""why() { sed 's/.*"code": *"\([^"]*\)".* \([0-9]*\)$/\2 \1/'; }""")


def _work() -> Iterator[Command]:
    ana, jordi, nuria, visitor = _as("ANA"), _as("JORDI"), _as("NURIA"), _as("VISITOR")
    yield _line(
        "sign in as the owner of a bakery",
        f"ANA=$(login ana@espiga.example); curl -s {ana} $GW/api/v1/auth/me; echo",
        '"email": "ana@espiga.example"',
    )
    yield _line("her sales", f'curl -s {ana} "$GW/api/v1/sales?limit=2"; echo', '"items": [{"id"')
    yield _line("enter a sale", f'curl -s {ana} -H "$J" -d "$SALE" $GW/api/v1/sales; echo', SALE_SEEN)
    yield _line("and see it again", f'curl -s {ana} "$GW/api/v1/sales?limit=1"; echo', SALE_SEEN)
    yield _line(
        "what a service sees: a forged role is dropped, the verified identity added",
        f"curl -s {ana} -H 'X-User-Role: forged' $GW/api/v1/external/echo | tr '[' '\\n' | grep '\"X-'",
        '"X-User-Role", "owner"',
    )
    yield _line(
        "Jordi works for two bakeries and names the second",
        f'JORDI=$(login jordi@martin.example); curl -s {STATUS} {jordi} -H "X-Tenant-ID: $ESPIGA" $GW/api/v1/sales',
        "200",
    )
    yield _line(
        "the subscription of Núria has ended, but she is in grace",
        f"NURIA=$(login nuria@puig.example); curl -si {nuria} $GW/api/v1/orders | grep -i '^x-subscription-grace'",
        "X-Subscription-Grace: ",
    )
    yield _line(
        "a demo session has services and data of its own",
        f"VISITOR=$(login visitor@demo.example); curl -s {STATUS} {visitor} $GW/api/v1/sales",
        "200",
    )
    yield _line(
        "an address on the map",
        f"""curl -s {ana} -H "$J" -d '{{"query":"Carrer de Verdi 12"}}' $GW/api/v1/geocode; echo""",
        '"city":"Barcelona"',
    )
    yield _line(
        "the token of Rosa is an old one: the gateway asks for her plan and her e-mail address",
        f"ROSA=$(login rosa@espiga.example); curl -s {_as('ROSA')} $GW/api/v1/external/echo | tr '[' '\\n'"
        " | grep -e Tier -e Email",
        '"X-Subscription-Tier", "professional"',
    )
    yield from _streams(ana)
    yield _line("health of the gateway and its services", "curl -s $GW/health; echo", '"services"')


def _streams(ana: str) -> Iterator[Command]:
    yield _line(
        "her alerts as they come, for three seconds",
        f"curl -sN -m 3 {ana} $GW/api/v1/alerts/stream",
        "event: hello",
    )
    yield _line(
        "a ticket opens a stream once, also for what can send no header",
        rf"""TICKET=$(curl -s -X POST {ana} $GW/api/v1/alerts/ticket | sed 's/.*"ticket": *"\([^"]*\)".*/\1/')""",
    )
    yield _line("", 'curl -sN -m 1 "$GW/api/v1/alerts/stream?ticket=$TICKET"', "event: hello")
    yield _line("and not twice", f'curl -s {WHY} "$GW/api/v1/alerts/stream?ticket=$TICKET" | why', "401 token-invalid")


def _refusals() -> Iterator[Command]:
    ana, otto, gina = _as("ANA"), _as("OTTO"), _as("GINA")
    forged = '-H "Authorization: Bearer ${ANA%?????}AAAAA"'
    sales, refused = "$GW/api/v1/sales | why", f"curl -s {WHY}"
    yield _line("no token", f"{refused} {sales}", "401 token-missing")
    yield _line("a token that somebody has changed", f"{refused} {forged} {sales}", "401 token-invalid")
    yield _line(
        "an expired subscription",
        f"OTTO=$(login otto@vogel.example); {refused} {otto} {sales}",
        "402 subscription-expired",
    )
    yield _line(
        "a write to a read-only bakery",
        f'GINA=$(login gina@rossi.example); {refused} {gina} -H "$J" -d "$SALE" {sales}',
        "403 tenant-read-only",
    )
    yield _line("a foreign bakery", f'{refused} {ana} -H "X-Tenant-ID: $MARTIN" {sales}', "403 tenant-forbidden")
    yield _line(
        "an ordinary account in the demo bakery",
        f'{refused} {_as("JORDI")} -H "X-Tenant-ID: $DEMO" {sales}',
        "403 demo-isolation",
    )
    yield _line(
        "a demo session in a real bakery",
        f'{refused} {_as("VISITOR")} -H "X-Tenant-ID: $ESPIGA" {sales}',
        "403 demo-isolation",
    )
    yield _line("a path in disguise", f"{refused} {ana} $GW/api/v1/sales/..%2fauth%2fme | why", "400 bad-request")
    yield _line("no such route", f"{refused} {ana} $GW/api/v1/cakes | why", "404 not-found")


def _operation(token: str) -> Iterator[Command]:
    operator, ana = _as("OP"), _as("ANA")
    sale = f'{ana} -H "$J" -d "$SALE" $GW/api/v1/sales'
    yield _line("operators: the services", f'OP="{token}"; curl -s {operator} $ADMIN/api/services; echo', '"sales"')
    made = """-d '{"tenant_id":"'$ESPIGA'","name":"Till 1","role":"pos"}' $ADMIN/api/keys"""
    yield _line(
        "operators: make an API key for a till of Ana",
        rf"""TILL=$(curl -s {operator} -H "$J" {made} | sed 's/.*"key": *"\([^"]*\)".*/\1/')""",
    )
    yield _line(
        "the till asks what its bakery has paid for",
        'curl -s -H "Authorization: ApiKey $TILL" $GW/api/v1/tenants/$ESPIGA/subscription; echo',
        '"tier": "',
    )
    yield _line(
        "operators: metrics",
        "curl -s $ADMIN/metrics | grep '^gateway_requests_total.*sales'",
        'path="/api/v1/sales/**"',
    )
    alert = """-d '{"alert_id":"oven-3","severity":"critical","message":"Oven 3 is cold"}'"""
    yield _line(
        "a service publishes an alert and knows that it is stored",
        f'curl -s {operator} -H "$J" {alert} $ADMIN/api/tenants/$ESPIGA/alerts; echo',
        '"stored": true',
    )
    yield _line(
        "operators: put the bakery of Ana on hold",
        f"""RO=$ADMIN/api/tenants/$ESPIGA/read-only; curl -s -X PUT {operator} -H "$J" """
        """-d '{"reason":"stock-taking"}' $RO; echo""",
        '"reason": "stock-taking"',
    )
    yield _line("her writes are refused", f"curl -s {WHY} {sale} | why", "403 tenant-read-only")
    yield _line("operators: end the hold", f"curl -s -X DELETE {operator} $RO; echo")
    yield _line("and they pass", f"curl -s {STATUS} {sale}", "201")
    plan = """-X PUT -d '{"tier":"enterprise"}' $GW/api/v1/tenants/$ESPIGA/subscription"""
    yield _line(
        "a bigger plan: the tenant service is asked first, then every older token is stale, also that of Ana",
        f'curl -s {STATUS} {ana} -H "$J" {plan}',
        "200",
    )
    yield _line("", f"curl -s {WHY} {ana} $GW/api/v1/sales | why", "401 token-stale")


def _excess() -> Iterator[Command]:
    yield _line(
        "too many requests: Claire spends her 300 a minute",
        f"CLAIRE=$(login claire@martin.example); curl -s {STATUS} {_as('CLAIRE')}"
        ' "$GW/api/v1/inventory?page=[1-400]" | sort | uniq -c',
        " 429",
    )


def banner(
    *,
    public_url: str,
    admin_url: str,
    admin_token_file: str | None,
    accounts: Sequence[Account],
    tenants: Mapping[str, Tenant],
    services: Mapping[str, str],
) -> str:
    """The whole text, ending in a newline. `services`: name -> URL; `tenants`: by id, for the accounts' bakeries."""
    token = admin_token_file if admin_token_file is not None else "$ADMIN_TOKEN"
    commands = banner_commands(
        public_url=public_url, admin_url=admin_url, admin_token_file=admin_token_file, accounts=accounts
    )
    ports = "  ".join(f"{name} :{url.rpartition(':')[2]}" for name, url in services.items())
    lines = [
        "",
        "bakerygw demo, on this machine alone",
        f"  look      {public_url}/demo/   in a browser: alerts, training, limits and holds, live",
        f"  gateway   {public_url}   API {public_url}/docs   health {public_url}/health",
        f"  admin     {admin_url}   token: {token}",
        *textwrap.wrap(ports, WIDTH, initial_indent="  services  ", subsequent_indent=" " * 12),
        "",
        f"Accounts; the password of each is {PASSWORD}",
        *_table(accounts, tenants),
        "",
        "Paste into a shell, from top to bottom (with SESSION_COOKIES a sign-in gives no token, and most are refused)",
        *_drawn(commands),
        "",
    ]
    return "\n".join(lines) + "\n"


def _drawn(commands: Iterable[Command]) -> Iterator[str]:
    for command in commands:
        if command.title:
            yield f"# {command.title}" + (f"  →  {command.expect.strip()}" if command.expect else "")
        yield command.shell


def _table(accounts: Sequence[Account], tenants: Mapping[str, Tenant]) -> Iterator[str]:
    rows = [
        (account.email, account.role, tenant.name, f"{tenant.tier} until {tenant.valid_until[:10]}", account.shows)
        for account in accounts
        if (tenant := tenants.get(account.tenant_id)) is not None
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        yield ("  " + "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True))).rstrip()
