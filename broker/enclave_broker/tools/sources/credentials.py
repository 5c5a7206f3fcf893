"""How a source's requests say who asks: headers, query parameters and cookies with secrets in them. Pure.

Secrets are put in after the request was made from the guest's arguments, replacing whatever stands there, and never
come near a schema or a message. A server that repeats what it was sent is the registry's affair: whatever leaves the
broker is searched for secrets, also as they stand in a URL and in `Basic` credentials.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .requests import HttpRequest
    from .templates import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What is added to every request of a source."""

    headers: Mapping[str, Template]
    query: Mapping[str, Template]
    cookies: Mapping[str, Template]
    basic: tuple[Template, Template] | None = None
    """User and password, for the header `Authorization: Basic`."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets that are needed, sorted."""
        templates = [*self.headers.values(), *self.query.values(), *self.cookies.values(), *(self.basic or ())]
        return tuple(sorted(frozenset().union(*(template.secrets for template in templates))))

    @property
    def header_names(self) -> frozenset[str]:
        """Headers that the guest may not set, in small letters."""
        return frozenset(name.lower() for name in self.headers) | ({"authorization"} if self.basic else set())

    def apply(self, request: HttpRequest, secrets: Mapping[str, str]) -> HttpRequest:
        """Return the request with the credentials in it; raises MissingSecret."""
        headers = {name: template.fill(secrets) for name, template in self.headers.items()}
        if self.basic is not None:
            headers["Authorization"] = f"Basic {self._basic_token(secrets)}"
        query = {name: template.fill(secrets) for name, template in self.query.items()}
        cookies = {name: quote(template.fill(secrets), safe="") for name, template in self.cookies.items()}
        replaced = {name.lower() for name in headers}
        return replace(
            request,
            headers=(*(pair for pair in request.headers if pair[0].lower() not in replaced), *headers.items()),
            query=(*(pair for pair in request.query if pair[0] not in query), *query.items()),
            cookies=(*(pair for pair in request.cookies if pair[0] not in cookies), *cookies.items()),
        )

    def _basic_token(self, secrets: Mapping[str, str]) -> str:
        assert self.basic is not None, "asked for only where there is one"
        user, password = (template.fill(secrets) for template in self.basic)
        return base64.b64encode(f"{user}:{password}".encode()).decode()


NO_CREDENTIALS = Credentials(headers={}, query={}, cookies={})
