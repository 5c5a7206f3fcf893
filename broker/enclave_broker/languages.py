"""What code is written in: who decides, and what the workers that run it offer. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from enclave_protocol import RemoteProtocolError
from enclave_protocol.languages import DEFAULT_LANGUAGE, LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enclave_protocol import Hello
    from enclave_protocol.languages import Language

HEADER = "X-Enclave-Language"
"""For HTTP clients that cannot put `language` into the body."""


def _unknown(_: str) -> Language | None:
    return None


class Unsaid(msgspec.Struct, frozen=True):
    """What decides the language of a request that does not say it."""

    header: str | None = None
    """What the request's header says, before all else."""
    of_profile: Callable[[str], Language | None] = _unknown
    """The language of a profile that is named; None leaves it to the worker."""
    default: Language = DEFAULT_LANGUAGE
    """The broker's, for a request that names no profile."""

    def language(self, asked: str | None, profile: str | None) -> Language | None:
        """Return a request's language.

        Args:
            asked: by the request; None if it does not say.
            profile: that it names, if any.

        Raises:
            RemoteProtocolError: there is no such language.
        """
        if asked is not None:
            return parse(asked)
        if self.header is not None:
            return parse(self.header.strip().lower(), field=HEADER)
        return self.default if profile is None else self.of_profile(profile)


def parse(name: str, *, field: str = "language") -> Language:
    """Return a language by its name; raises RemoteProtocolError naming `field`."""
    for language in LANGUAGES:
        if name == language:
            return language
    raise RemoteProtocolError(f"no such language: {name[:40]!r}", field=field, allowed=", ".join(LANGUAGES))


def need(profile: str, language: str | None) -> str:
    """Return what a session asks of its worker, in the form of `offers`."""
    return profile if language is None else f"{profile} {language}"


def offers(hello: Hello) -> list[str]:
    """Return everything that can be asked of a worker."""
    return [need(profile, language) for profile in hello.profiles for language in (None, *languages_of(hello, profile))]


def languages_of(hello: Hello, profile: str) -> list[str]:
    """Return the languages that a worker offers with a profile of its."""
    return hello.languages if hello.profile_languages is UNSET else hello.profile_languages.get(profile, [])


def first_of(hello: Hello, profile: str) -> Language | None:
    """Return what a worker runs with a profile if nobody says; None if we do not know that language."""
    return next((language for language in LANGUAGES if languages_of(hello, profile)[:1] == [language]), None)


def refuse_unless_offered(profile: str, language: str | None, hellos: Iterable[Hello]) -> None:
    """Raise RemoteProtocolError, naming the field, if no worker offers this."""
    said = list(hellos)
    asked = need(profile, language)
    if any(asked in offers(hello) for hello in said):
        return
    found = sorted({other for hello in said if profile in hello.profiles for other in languages_of(hello, profile)})
    if found:
        reason = f"no worker offers {language!r} with the profile {profile[:40]!r}"
        raise RemoteProtocolError(reason, field="language", allowed=", ".join(found))
    profiles = sorted({name for hello in said for name in hello.profiles})
    reason, allowed = f"no worker offers {profile[:40]!r}", ", ".join(profiles) or "none"
    raise RemoteProtocolError(reason, field="profile", allowed=allowed)
