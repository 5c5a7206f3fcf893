"""Enclave's protocol: messages, events, codec, session states, limits and outcomes. Pure: no I/O, no clock."""

from .codec import (
    MAX_MESSAGE_BYTES,
    decode_broker_message,
    decode_client_message,
    decode_event,
    decode_tool_result,
    decode_worker_message,
    encode,
    peek,
)
from .declared_tools import NO_TOOLS, ClientTools, DeclaredTool, parse_declared_tools
from .errors import (
    EnclaveError,
    LocalProtocolError,
    NoCapacity,
    ProtocolError,
    RemoteProtocolError,
    SandboxError,
)
from .events import PROTOCOL_VERSION, AnyEvent, Event, Final, FinalError, FinalPayload, Stats
from .ids import CallId, SessionId, new_call_id, new_session_id, parse_call_id, parse_session_id
from .inputs import parse_env, parse_files
from .limits import MAX_CODE_BYTES, Limits, parse_limits
from .messages import (
    Ack,
    Attach,
    Cancel,
    CatalogNotice,
    Drain,
    Execute,
    Hello,
    KeptSession,
    Ping,
    Pong,
    Rejection,
    ToolError,
    ToolResult,
    Welcome,
)
from .outcomes import Code, is_retryable
from .session import State, Trigger, transition

__version__ = "0.1.0"

__all__ = [
    "MAX_CODE_BYTES",
    "MAX_MESSAGE_BYTES",
    "NO_TOOLS",
    "PROTOCOL_VERSION",
    "Ack",
    "AnyEvent",
    "Attach",
    "CallId",
    "Cancel",
    "CatalogNotice",
    "ClientTools",
    "Code",
    "DeclaredTool",
    "Drain",
    "EnclaveError",
    "Event",
    "Execute",
    "Final",
    "FinalError",
    "FinalPayload",
    "Hello",
    "KeptSession",
    "Limits",
    "LocalProtocolError",
    "NoCapacity",
    "Ping",
    "Pong",
    "ProtocolError",
    "Rejection",
    "RemoteProtocolError",
    "SandboxError",
    "SessionId",
    "State",
    "Stats",
    "ToolError",
    "ToolResult",
    "Trigger",
    "Welcome",
    "__version__",
    "decode_broker_message",
    "decode_client_message",
    "decode_event",
    "decode_tool_result",
    "decode_worker_message",
    "encode",
    "is_retryable",
    "new_call_id",
    "new_session_id",
    "parse_call_id",
    "parse_declared_tools",
    "parse_env",
    "parse_files",
    "parse_limits",
    "parse_session_id",
    "peek",
    "transition",
]
