"""A warm `ipykernel` as a target: an interpreter that is kept running and given one piece of code after another.

It is asked over its own protocol, by the library that everybody asks it with. A request is done when the kernel has
answered it, shown its result, and said that it is idle again. There is no sandbox, and each piece of code finds what
the ones before it have left. Both packages are the extra `bench`: only this module imports them, and only when called.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import tempfile
from typing import TYPE_CHECKING, Any

from .open_loop import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from jupyter_client.asynchronous.client import AsyncKernelClient

CODE = "1 + 1"
_CONTENT = {
    "code": CODE,
    "silent": False,
    "store_history": True,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": True,
}
"""As `execute` of the client has it by default."""
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
_PARTS = frozenset({"answered", "shown", "idle"})


def installed() -> bool:
    """Whether there is a kernel, and the library to talk to it."""
    return all(importlib.util.find_spec(name) for name in ("ipykernel", "jupyter_client"))


class Kernel:
    """A kernel that runs. Made by `running_kernel`."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client
        self._missing: dict[str, set[str]] = {}
        """By a request's id, what has not come yet."""
        self._done: dict[str, asyncio.Future[Answer]] = {}
        self._deaf = False
        """Whether nobody listens any more, so that no answer will come."""

    async def ask(self) -> Answer:
        """Have it execute `CODE`."""
        if self._deaf:
            return Answer.FAILED
        session = self._client.session
        message = session.msg("execute_request", _CONTENT)
        request = message["header"]["msg_id"]
        self._missing[request] = set(_PARTS)
        self._done[request] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                # Not by the client's own `execute`: it sends behind the event loop's back, which then is not told of
                # an answer that had come by that moment, and with many requests at once nobody wakes up any more.
                await self._client.shell_channel.socket.send_multipart(session.serialize(message))
                return await self._done[request]
        except TimeoutError:
            return Answer.FAILED
        finally:
            del self._missing[request], self._done[request]

    async def listen(self) -> None:
        """Take what the kernel says on both channels, for ever; if that ends, all that is asked fails at once."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(self._client.get_shell_msg))
                group.create_task(self._listen(self._client.get_iopub_msg))
        finally:
            self._deaf = True
            for done in self._done.values():
                if not done.done():
                    done.set_result(Answer.FAILED)

    async def _listen(self, receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        while True:
            message = await receive()
            request = message["parent_header"].get("msg_id")
            if request in self._done and not self._done[request].done():
                self._take(request, message["msg_type"], message["content"])

    def _take(self, request: str, kind: str, content: dict[str, Any]) -> None:
        missing, done = self._missing[request], self._done[request]
        if kind == "execute_reply":
            missing.discard("answered")
            if content["status"] != "ok":
                done.set_result(Answer.FAILED)
                return
        elif kind == "execute_result" and content["data"].get("text/plain") == "2":
            missing.discard("shown")
        elif kind == "status" and content["execution_state"] == "idle":
            missing.discard("idle")
        if not missing:
            done.set_result(Answer.ACCEPTED)


@contextlib.asynccontextmanager
async def running_kernel() -> AsyncIterator[Kernel]:
    """Run a kernel for the length of a `with` block, its files in a directory of their own.

    Raises:
        RuntimeError: there is none of our environment, or it is not ready in time.
        OSError: it could not be started.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel  # noqa: PLC0415 - not everybody has it
    from jupyter_client.manager import AsyncKernelManager  # noqa: PLC0415 - the same

    with tempfile.TemporaryDirectory(prefix="enclave-kernel-") as directory:
        # Only the kernel of our own environment, which needs no directory: whoever runs this may have others.
        kinds = KernelSpecManager(kernel_dirs=[])
        file = f"{directory}/kernel.json"
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kinds, connection_file=file)
        environment = {**os.environ, "IPYTHONDIR": directory, "JUPYTER_CONFIG_DIR": directory}
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            await manager.start_kernel(env=environment, stdout=null, stderr=null)
        except NoSuchKernel as error:
            raise RuntimeError(str(error)) from error
        finally:
            os.close(null)
        try:
            client = manager.client()
            client.start_channels()
            try:
                await client.wait_for_ready(timeout=START_TIMEOUT_S)
                kernel = Kernel(client)
                listening = asyncio.create_task(kernel.listen())
                try:
                    yield kernel
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
            finally:
                client.stop_channels()
        finally:
            await manager.shutdown_kernel(now=True)
