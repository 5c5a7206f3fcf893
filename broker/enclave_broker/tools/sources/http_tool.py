"""A tool that is one HTTP request: an operation of an OpenAPI document, or an endpoint that somebody described."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from enclave_broker.tools.tool import ArgumentsRefused, Tool, ToolFailure, ToolPolicy
from enclave_protocol import Code
from enclave_protocol.limits import MAX_VALUE_BYTES

from .answers import read_answer
from .requests import BadArgument, build_request
from .templates import MissingSecret

if TYPE_CHECKING:
    from enclave_broker.tools.tool import ToolContext

    from .credentials import Credentials
    from .http_caller import HttpCaller
    from .operation import Operation


class HttpTool(Tool):
    """One operation of a server.

    Args:
        operation: what is asked for.
        caller: what sends it; closed by the source.
        credentials: what is added to the request.
        service: the source's name.
        policy: how its calls are run; `secrets` has to name those of `credentials`.

    Raises:
        ValueError: the operation's schema is not acceptable.
    """

    def __init__(
        self, operation: Operation, caller: HttpCaller, credentials: Credentials, *, service: str, policy: ToolPolicy
    ) -> None:
        super().__init__(
            name=operation.name,
            description=operation.description,
            input_schema=operation.input_schema,
            service=service,
            policy=policy,
        )
        self.operation = operation
        self._caller = caller
        self._credentials = credentials

    async def invoke(self, args: dict[str, Any], context: ToolContext) -> object:
        """Send the request; returns what a 2xx answer holds."""
        operation, credentials = self.operation, self._credentials
        try:
            request = credentials.apply(build_request(operation, args), context.secrets)
        except BadArgument as error:
            raise ArgumentsRefused(f"{self.name}: {error}") from error
        except MissingSecret as error:
            raise ToolFailure(Code.SECRET_ERROR, f"{self.name}: {error}") from error
        most = min(self.policy.max_result_bytes or MAX_VALUE_BYTES, MAX_VALUE_BYTES)
        if context.traceparent:
            request = replace(request, headers=(*request.headers, *context.trace_headers.items()))
        answer = await self._caller.call(request, max_bytes=most, idempotent=operation.idempotent)
        return read_answer(answer, idempotent=operation.idempotent, now_s=time.time())
