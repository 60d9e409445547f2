"""Settings while they are read."""

from dataclasses import dataclass
from typing import Any

from bakerygw.config.secrecy import shown_value


@dataclass(slots=True)
class Draft:
    """Values on their way to `Settings`, and what is wrong with them."""

    given: dict[str, str]
    values: dict[str, Any]
    problems: list[str]
    bad: set[str]
    """Fields about which nothing more can be said."""

    def wrong(self, name: str, allowed: str) -> None:
        """Note a problem, in one line, with the value masked where it is secret."""
        self.bad.add(name)
        self.problems.append(f"{name.upper()}: {shown_value(name, self.given.get(name))}; {allowed}")
