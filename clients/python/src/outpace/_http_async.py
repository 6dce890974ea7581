"""HTTP/1.1 connections to outpace for asyncio, without other packages."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Dict, List, Optional, Tuple

from ._core import IDLE_MAX, Answer, Call, Endpoint, read_answer
from ._errors import UnreachableError
from ._http import keep_alive

#: Largest head of an answer in bytes.
HEAD_MAX = 64 * 1024


#: Errors of a connection, of a server that speaks another protocol, and of time.
_FAILURES = (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.TimeoutError)


def write_request(call: Call, endpoint: Endpoint) -> bytes:
    """Returns the bytes of the request."""
    lines = [f"{call.method} {endpoint.prefix}{call.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in call.fields(endpoint).items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a value of a header field has a line break")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + (call.body or b"")


class Connection:
    """Connection that one call uses at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.since = 0.0
        self.is_reusable = False

    def close(self) -> None:
        """Closes the connection at once."""
        self.writer.close()

    async def exchange(self, request: bytes) -> Tuple[int, bytes]:
        """Sends the request, and returns the status and the body of its answer."""
        self.writer.write(request)
        await self.writer.drain()
        status, fields = await self._head()
        while 100 <= status < 200:
            status, fields = await self._head()
        body = await self._body(fields)
        return status, body

    async def _head(self) -> Tuple[int, Dict[str, str]]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise UnreachableError(f"the server does not speak HTTP/1.1: {first[:100]!r}")
        pairs = [line.partition(":") for line in lines if line]
        return int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    async def _body(self, fields: Dict[str, str]) -> bytes:
        self.is_reusable = fields.get("connection", "").lower() != "close"
        if fields.get("transfer-encoding", "").lower() == "chunked":
            return await self._chunks()
        if "content-length" in fields:
            return await self.reader.readexactly(int(fields["content-length"]))
        self.is_reusable = False
        return await self.reader.read()

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += await self.reader.readexactly(size)
            ended = await self.reader.readuntil(b"\r\n")
            while size == 0 and ended != b"\r\n":
                ended = await self.reader.readuntil(b"\r\n")
            if size == 0:
                return body


class AsyncTransport:
    """Pool of connections of one event loop."""

    def __init__(self, endpoint: Endpoint, timeout: float, tls: Optional[ssl.SSLContext]) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._tls = tls
        self._idle: List[Connection] = []
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._is_closed = False

    async def call(self, call: Call, wait: Optional[float] = 0.0) -> Answer:
        """Makes the call. Its answer may take ``wait`` seconds longer, or any time with None."""
        request = write_request(call, self._endpoint)
        timeout = None if wait is None else self._timeout + wait
        try:
            connection = self._pooled() or await self._connect()
            try:
                status, body = await asyncio.wait_for(connection.exchange(request), timeout)
            except BaseException:
                connection.close()
                raise
        except _FAILURES as error:
            told = f"outpace at {self._endpoint.fields['Host']}: {error or type(error).__name__}"
            raise UnreachableError(told) from error
        if connection.is_reusable and not self._is_closed:
            connection.since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return read_answer(status, body)

    def _pooled(self) -> Optional[Connection]:
        if self._loop is not asyncio.get_running_loop():
            # Connections of an event loop that has ended cannot be used.
            self._loop = asyncio.get_running_loop()
            self._idle = []
        while self._idle:
            connection = self._idle.pop()
            is_fresh = time.monotonic() - connection.since < IDLE_MAX
            if is_fresh and not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        tls = (self._tls or ssl.create_default_context()) if self._endpoint.is_tls else None
        opening = asyncio.open_connection(
            self._endpoint.host, self._endpoint.port, ssl=tls, limit=HEAD_MAX
        )
        reader, writer = await asyncio.wait_for(opening, self._timeout)
        keep_alive(writer.get_extra_info("socket"))
        return Connection(reader, writer)

    def close(self) -> None:
        """Closes the idle connections."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        if self._loop is not None and not self._loop.is_closed():
            for connection in idle:
                connection.close()
