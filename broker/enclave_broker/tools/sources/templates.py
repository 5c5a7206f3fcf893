"""Text with secrets in it: `Bearer ${WEATHER_KEY}`. Pure.

What a configuration says about a secret is its name; the value is put in at the last moment, where the request is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACE = re.compile(r"\$(?:\$|{([A-Za-z_][A-Za-z0-9_]{0,127})}|)")


class MissingSecret(LookupError):  # noqa: N818 - a fact about the configuration
    """A text needs a secret that is not there; the message has its name."""


@dataclass(frozen=True, slots=True)
class Template:
    """Text in which `${NAME}` stands for a secret, and `$$` for a dollar sign.

    Raises:
        ValueError: a `$` is neither.
    """

    text: str

    def __post_init__(self) -> None:
        """Refuse what would not be replaced: it would be sent as it is."""
        for place in _PLACE.finditer(self.text):
            if place[0] == "$":
                raise ValueError(f"{self.text!r}: after `$` comes {{NAME}}, the name of a secret, or another `$`")

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the secrets in it."""
        return frozenset(place[1] for place in _PLACE.finditer(self.text) if place[1])

    def fill(self, secrets: Mapping[str, str]) -> str:
        """Return the text with its secrets; raises MissingSecret."""

        def value(place: re.Match[str]) -> str:
            if place[0] == "$$":
                return "$"
            try:
                return secrets[place[1]]
            except KeyError:
                raise MissingSecret(f"no secret {place[1]!r}") from None

        return _PLACE.sub(value, self.text)
