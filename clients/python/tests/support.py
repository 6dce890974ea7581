"""A real outpace for the tests, as a process of its own.

``OUTPACE_BIN`` is the program, and ``ORIGIN`` is the address of an origin that answers any path
with 200. The Rust test ``clients_sdk`` sets both.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, List, Optional, Type, Union

from outpace import AsyncOutpace, Outpace

#: Seconds to wait for an event before a test fails.
LONGEST = 30.0


class Server:
    """outpace with a configuration of its own, until the end of a ``with`` statement."""

    def __init__(self, more: str) -> None:
        self._more = more
        self._dir = tempfile.TemporaryDirectory()
        self._port = 0
        self._clients: List[Union[Outpace, AsyncOutpace]] = []
        self.start()

    def start(self) -> None:
        """Starts the program, after a kill on the same port."""
        path = Path(self._dir.name) / "outpace.yaml"
        origin = os.environ["ORIGIN"]
        path.write_text(
            f"listen: 127.0.0.1:{self._port}\n"
            'admin: { listen: "127.0.0.1:0" }\n'
            f"data_dir: {self._dir.name}/data\n"
            f'egress: {{ allow: ["127.0.0.1"], resolve: {{ "api.test": "{origin}" }} }}\n'
            f"{self._more}\n"
        )
        command = [os.environ["OUTPACE_BIN"], "serve", "--config", str(path)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line.decode())
            event = json.loads(line) if line.startswith(b"{") else {}
            if event.get("message") == "ready":
                break
        else:
            raise AssertionError("outpace did not start: " + "".join(lines))
        self._port = int(event["listen"].rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self._port}"
        self._admin = event["admin"]
        # A pipe that is not read would block the program.
        self._reading = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._reading.start()

    def client(self, **options: Any) -> Outpace:
        """Returns a client that is closed at the end."""
        client = Outpace(self.url, **options)
        self._clients.append(client)
        return client

    def async_client(self, **options: Any) -> AsyncOutpace:
        """Returns a client for asyncio that is closed at the end."""
        client = AsyncOutpace(self.url, **options)
        self._clients.append(client)
        return client

    def kill(self) -> None:
        """Ends the program with SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def metric(self, series: str) -> float:
        """Returns the value of a series of ``/metrics``, or 0 if it is absent."""
        connection = http.client.HTTPConnection(self._admin, timeout=LONGEST)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def waiting(self, target: str = "api") -> float:
        """Returns the number of requests and works that wait for their turn."""
        return self.metric(f'outpace_waiting{{target="{target}"}}')

    def get(self, url: str) -> int:
        """Returns the status of a request that goes through the proxy."""
        connection = http.client.HTTPConnection(self.url[len("http://") :], timeout=LONGEST)
        connection.request("GET", url)
        status = connection.getresponse().status
        connection.close()
        return status

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for client in self._clients:
            client.close()
        self.kill()
        self._dir.cleanup()


def targets(limits: str, more: str = "") -> str:
    """Returns the configuration of one target named ``api``."""
    return f"targets:\n  - {{ name: api, hosts: [api.test], limits: [{limits}]{more} }}"


def until(what: str, event: Callable[[], Any]) -> Any:
    """Calls ``event`` until its result is true."""
    ends = time.monotonic() + LONGEST
    while time.monotonic() < ends:
        found = event()
        if found:
            return found
        # A loop without a pause would take the interpreter from the other threads.
        time.sleep(0.001)
    raise AssertionError(f"no {what}")
