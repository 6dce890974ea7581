"""HTTP/1.1 connections to outpace for threads."""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import threading
import time
from typing import List, Optional, Tuple

from ._core import IDLE_MAX, Answer, Call, Endpoint, read_answer
from ._errors import UnreachableError


def keep_alive(found: Optional[socket.socket]) -> None:
    """Lets the kernel probe the peer, so that a long wait ends if outpace's machine is gone."""
    if found is None:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Transport:
    """Pool of connections. Each call has a connection of its own while it waits."""

    def __init__(self, endpoint: Endpoint, timeout: float, tls: Optional[ssl.SSLContext]) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: List[Tuple[http.client.HTTPConnection, float]] = []
        self._process = os.getpid()
        self._is_closed = False

    def call(self, call: Call, wait: Optional[float] = 0.0) -> Answer:
        """Makes the call. Its answer may take ``wait`` seconds longer, or any time with None."""
        connection = self._connection()
        try:
            try:
                self._send(connection, call, wait)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                told = (
                    f"outpace at {self._endpoint.fields['Host']}: {error or type(error).__name__}"
                )
                raise UnreachableError(told) from error
        except BaseException:
            # Also after an interrupt, because the answer could still arrive on the connection.
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._keep(connection)
        return read_answer(response.status, body)

    def _send(
        self, connection: http.client.HTTPConnection, call: Call, wait: Optional[float]
    ) -> None:
        if connection.sock is None:
            connection.connect()
            keep_alive(connection.sock)
        connection.sock.settimeout(None if wait is None else self._timeout + wait)
        path = self._endpoint.prefix + call.path
        connection.putrequest(call.method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in call.fields(self._endpoint).items():
            connection.putheader(name, value)
        connection.endheaders(call.body)

    def _connection(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._process != os.getpid():
                # A fork shares the sockets with its parent, so it must not use them.
                self._process = os.getpid()
                self._idle = []
            while self._idle:
                connection, since = self._idle.pop()
                if time.monotonic() - since < IDLE_MAX and not is_readable(connection.sock):
                    return connection
                connection.close()
        endpoint = self._endpoint
        if endpoint.is_tls:
            context = self._tls or ssl.create_default_context()
            return http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=self._timeout, context=context
            )
        return http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=self._timeout)

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append((connection, time.monotonic()))
                return
        connection.close()

    def close(self) -> None:
        """Closes the idle connections."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()


def is_readable(found: Optional[socket.socket]) -> bool:
    """Returns true if the peer has closed an idle connection, or has sent something unasked."""
    if found is None:
        return True
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(found, select.POLLIN)
        return bool(poller.poll(0))
    return bool(select.select([found], [], [], 0)[0])
