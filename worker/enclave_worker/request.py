"""What an `execute` asks for, checked against what this worker offers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from enclave_protocol import RemoteProtocolError, parse_env, parse_files, parse_limits
from enclave_protocol.languages import MAX_SCRIPT_BYTES
from enclave_protocol.trace_context import parse_trace

from .profiles import DEFAULT_PROFILE, MIN_MEMORY_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enclave_protocol import Execute, Limits
    from enclave_protocol.languages import Language
    from enclave_protocol.trace_context import TraceContext

    from .offers import Offer
    from .profiles import Profile


class Request(NamedTuple):
    """Code, and all that it is to run in."""

    code: str
    offer: Offer
    language: Language
    limits: Limits
    given: dict[str, Any]
    """What the guest's driver is told besides the code."""
    trace: TraceContext | None
    """Where in a distributed trace the session belongs."""


def read_request(message: Execute, offers: Mapping[str, Offer], max_code_bytes: int) -> Request:
    """Return what is asked for; raises RemoteProtocolError, with its field, if that is nothing we do."""
    offer, language = _offered(message, offers)
    most_bytes = min(max_code_bytes, MAX_SCRIPT_BYTES) if language == "shell" else max_code_bytes
    size_bytes = len(message.code.encode("utf-8", "surrogatepass"))
    if size_bytes > most_bytes:
        allowed = f"at most {most_bytes} bytes of UTF-8"
        raise RemoteProtocolError(f"{size_bytes} bytes", field="code", allowed=allowed)
    return Request(
        code=message.code,
        offer=offer,
        language=language,
        limits=_limits(message, offer),
        given={"language": language, **_inputs(message, offer.profile)},
        trace=None if message.traceparent is UNSET else parse_trace(message.traceparent),
    )


def _offered(message: Execute, offers: Mapping[str, Offer]) -> tuple[Offer, Language]:
    name = DEFAULT_PROFILE if message.profile is UNSET else message.profile
    if name not in offers:
        raise RemoteProtocolError(f"{name!r} is not offered here", field="profile", allowed=", ".join(offers))
    languages = offers[name].languages
    if message.language is UNSET:
        return offers[name], languages[0]
    for language in languages:
        if message.language == language:
            return offers[name], language
    reason = f"{message.language!r} is not offered here with the profile {name!r}"
    raise RemoteProtocolError(reason, field="language", allowed=", ".join(languages))


def _limits(message: Execute, offer: Offer) -> Limits:
    limits = offer.limits
    if message.limits is not UNSET:
        limits = parse_limits(message.limits, defaults=limits)
    memory, most = limits.memory_limit_bytes, offer.allowance.memory_bytes
    if memory is not UNSET and not MIN_MEMORY_BYTES <= memory <= most:
        allowed = f"{MIN_MEMORY_BYTES} to {most} bytes on this worker"
        raise RemoteProtocolError(f"{memory} bytes", field="limits.memoryLimitBytes", allowed=allowed)
    cpu_time, most = limits.cpu_time_ms, offer.allowance.cpu_time_ms
    if cpu_time is not UNSET and cpu_time > most:
        allowed = f"up to {most} ms on this worker"
        raise RemoteProtocolError(f"{cpu_time} ms", field="limits.cpuTimeMs", allowed=allowed)
    return limits


def _inputs(message: Execute, profile: Profile) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if message.env is not UNSET:
        inputs["env"] = env = parse_env(message.env)
        refused = next((name for name in env if not profile.allows_env(name)), None)
        if refused is not None:
            reason = f"the profile {profile.name!r} does not let a session set it"
            allowed = ", ".join(profile.allow_env) or "none"
            raise RemoteProtocolError(reason, field=f"env.{refused}", allowed=allowed)
    if message.files is not UNSET:
        inputs["files"] = parse_files(message.files)
    return inputs
