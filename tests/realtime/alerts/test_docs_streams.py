"""What docs/realtime.md says of the events of a stream, against what streams say."""

import re
from pathlib import Path
from typing import get_args

from bakerygw import realtime
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.realtime.alerts.controls import GapReason
from bakerygw.realtime.held import Ending
from tests.realtime.stream_fakes import Instance
from tests.test_docs import page, rows

REALTIME = Path(realtime.__file__).parent


def events() -> dict[str, list[str]]:
    section = page("docs/realtime.md").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    return {cells[0]: cells[1:] for cells in rows(section) if cells[0] != "event"}


def test_every_event_is_documented_with_its_members_and_no_other() -> None:
    here = Instance()
    reading = here.open("1-1", flags=TenantFlags(read_only=ReadOnly()))
    here.publish()
    here.turn()
    here.hub.degraded()
    here.hub.restored()
    here.turn(1)
    assert reading.stream is not None
    reading.stream.expiring(60)
    reading.stream.end("draining")
    reading.read()
    said: dict[str, set[str]] = {}
    for event in reading.client.events:
        said.setdefault(event.kind, set()).update(event.json)

    documented = {kind: set(re.findall(r"`(\w+)`", cells[0])) for kind, cells in events().items()}
    assert documented == said


def test_every_reason_of_a_gap_and_of_an_end_is_documented() -> None:
    told = {kind: set(re.findall(r"`([\w-]+)`", cells[1])) for kind, cells in events().items()}

    assert set(get_args(GapReason)) <= told["gap"]
    assert set(get_args(Ending)) <= told["bye"]


def test_operators_are_told_of_every_cause_for_which_a_stream_is_refused() -> None:
    sources = "".join((REALTIME / name).read_text() for name in ("alerts/handler.py", "guard.py", "quotas.py"))
    causes = set(re.findall(r'(?:reason=|not_now\(f?"[^"]*", )"([a-z-]+)"', sources)) | {"user-full", "tenant-full"}
    table = page("docs/operators.md").partition("\n## Troubleshooting\n")[2]

    assert {"alerts", "draining", "instance-full", "leeway", "too-many-new"} <= causes
    assert causes - {"no-tenant"} <= set(re.findall(r"`([\w-]+)`", table))
