"""What docs/realtime.md says of the events of a stream, against what streams say."""

import re
from typing import get_args

from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.realtime.controls import GapReason
from bakerygw.realtime.held import Ending
from tests.realtime.stream_fakes import Instance
from tests.test_docs import page, rows


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
