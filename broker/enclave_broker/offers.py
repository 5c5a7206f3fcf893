"""What the workers offer, as they last said: profiles, languages, and the limits that profiles set. Pure."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec import UNSET

from enclave_protocol import Limits, RemoteProtocolError, parse_limits
from enclave_protocol.languages import LANGUAGES
from enclave_protocol.logs import about

from .languages import Unsaid, first_of, need, offers, refuse_unless_offered

if TYPE_CHECKING:
    from enclave_protocol import Hello
    from enclave_protocol.languages import Language

    from .new_session import NewSession

log = logging.getLogger("enclave.broker")


class Offers:
    """Every worker's last `hello`. A worker that is away counts: it will be back, or another like it.

    Args:
        default_limits: the broker's.
        default_language: the broker's.
    """

    def __init__(self, default_limits: Limits, default_language: Language) -> None:
        self._default_limits = default_limits
        self._default_language: Language = default_language
        self._hellos: dict[str, Hello] = {}
        self._offered: frozenset[str] = frozenset()  # in the form of `languages.need`
        self._profile_limits: dict[str, Limits] = {}

    def learn(self, worker: str, hello: Hello) -> None:
        """Take in what a worker says. Where workers differ about a profile's limits, the last one has its way."""
        self._hellos[worker] = hello
        self._collect()
        for profile in hello.profiles:
            own = {} if hello.profile_limits is UNSET else hello.profile_limits.get(profile, {})
            self._profile_limits.pop(profile, None)
            try:
                if own:
                    self._profile_limits[profile] = parse_limits(own, defaults=self._default_limits)
            except RemoteProtocolError as error:
                log.warning("worker %s, profile %s: %s", worker, profile, error, extra=about(worker_id=hello.worker_id))

    def forget(self, worker: str) -> None:
        """Leave out a worker that will not be back. Limits that only it said stay, until another says others."""
        self._hellos.pop(worker, None)
        self._collect()

    def profiles(self) -> list[str]:
        """Return what is offered, by name."""
        return sorted({profile for hello in self._hellos.values() for profile in hello.profiles})

    def languages(self) -> list[str]:
        """Return the languages that are offered."""
        spoken = {language for hello in self._hellos.values() for language in hello.languages}
        return [language for language in LANGUAGES if language in spoken]

    def limits_of(self, profile: str) -> Limits:
        """Return what the limits of a request for `profile` start from: the broker's, changed by the profile's own."""
        return self._profile_limits.get(profile, self._default_limits)

    def unsaid_language(self, header: str | None = None) -> Unsaid:
        """Return what decides the language of a request that does not say it, but perhaps its `header`."""
        return Unsaid(header, self._language_of, self._default_language)

    def require(self, new: NewSession, *, workers: int) -> None:
        """Refuse a session that none of so many workers offers; as long as one never said what, nobody knows.

        Raises:
            RemoteProtocolError: names the field.
        """
        if need(new.profile, new.language) in self._offered or len(self._hellos) < workers or not self._hellos:
            return
        try:
            refuse_unless_offered(new.profile, new.language, self._hellos.values())
        except RemoteProtocolError as error:
            error.session_id = new.session_id
            raise

    def _collect(self) -> None:
        self._offered = frozenset(what for hello in self._hellos.values() for what in offers(hello))

    def _language_of(self, profile: str) -> Language | None:
        offering = (hello for hello in self._hellos.values() if profile in hello.profiles)
        return next((first_of(hello, profile) for hello in offering), None)
