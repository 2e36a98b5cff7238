"""A TCP proxy that breaks connections on demand, to put between a store and its server.

A network fails in more ways than a server does: the server lives on and may have done what it was
asked, and nobody tells. `cut` resets every connection; `hold` lets nothing through in either
direction while connections stay open, as when packets are lost, and `pass_on` sends on what was
held, as retransmission would.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

from beastmode.errors import BeastError, ConfigError

__all__ = ["FaultProxy"]

_CHUNK = 64 * 1024
_START_S = 10.0


class FaultProxy:
    """Listens on `host` ("127.0.0.1:PORT") and forwards to `target`, "HOST:PORT".

    Runs on a thread of its own until `close()`. Safe to use from any thread; a context manager.
    """

    def __init__(self, target: str) -> None:
        name, _, port = target.rpartition(":")
        if not name or not port.isdigit():
            raise ConfigError(f"target must be 'HOST:PORT', got {target!r}")
        self._target = (name, int(port))
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._port = 0
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.accepted = 0
        """Connections accepted so far."""
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_S) or self._failure is not None:
            raise BeastError(f"the proxy did not start: {self._failure}") from self._failure

    @property
    def host(self) -> str:
        """Where it listens, "127.0.0.1:PORT"."""
        return f"127.0.0.1:{self._port}"

    def hold(self) -> None:
        """Let nothing through from now on; connections stay open and new ones are accepted."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def pass_on(self) -> None:
        """Forward what was held, and everything from now on; accept connections again."""
        self._loop.call_soon_threadsafe(self._heal)

    def cut(self, *, refuse: bool = False) -> None:
        """Reset every connection; with `refuse` new ones are reset too, until `pass_on`."""
        self._loop.call_soon_threadsafe(self._cut, refuse)

    def close(self) -> None:
        """End the proxy and every connection. Idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_START_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- on the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the start
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._cut(refuse=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _heal(self) -> None:
        self._refusing = False
        self._open.set()

    def _cut(self, refuse: bool) -> None:
        self._refusing = self._refusing or refuse
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            onward, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (onward, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            sink.transport.abort()
        finally:
            self._writers.discard(sink)
            sink.close()
