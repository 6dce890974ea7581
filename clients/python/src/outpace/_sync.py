"""Client for threads."""

from __future__ import annotations

import ssl
import threading
import time
from types import TracebackType
from typing import Any, Callable, Mapping, Optional, Sequence, Type, TypeVar, Union, overload

from ._core import (
    DEFAULT_HOLD,
    DEFAULT_TIMEOUT,
    Answer,
    Call,
    Deadline,
    Endpoint,
    WorkSpec,
    batch_call,
    item_path,
    post,
    push_call,
    push_item,
    read_receipt,
    read_receipts,
    report_body,
    target_path,
)
from ._errors import NotFoundError, OutpaceError, PermitLostError, UnreachableError
from ._http import Transport
from ._renewal import Renewer
from ._types import (
    BufferInfo,
    Cost,
    Item,
    Key,
    PushItem,
    Receipt,
    Report,
    read_buffer,
    read_item,
    read_report,
)

T = TypeVar("T")


class Permit:
    """Right to do some work now. It is renewed until it is released."""

    def __init__(self, client: Outpace, spec: WorkSpec) -> None:
        self._client = client
        self._spec = spec
        self._lock = threading.Lock()
        self._is_over = True
        self._has_begun = False
        self._hold = spec.hold
        self._expires = 0.0
        #: Name of the target.
        self.target = spec.target
        #: Id of the permit, or None if outpace keeps too much other work for its reports.
        self.id: Optional[str] = None
        #: Seconds for which outpace let the work wait.
        self.waited = 0.0
        #: True if the permit ended before its work, so other work may run at the same time.
        self.lost = False

    def _begin(self, answer: Answer) -> None:
        self.id = answer.told["permit"]
        self.waited = answer.told["waited"]
        self._has_begun = True
        if self.id is not None:
            # outpace cuts a hold time that is longer than an hour.
            self._hold = float(answer.told["expires_in"])
            self._expires = time.monotonic() + self._hold
            self._is_over = False
            self._client._renewer.add(self._hold / 3, self._renew)

    def _renew(self) -> Optional[float]:
        """Renews the permit, and returns the seconds until the next renewal."""
        hold = self._hold
        with self._lock:
            if self._is_over:
                return None
        now = time.monotonic()
        try:
            self._client._call(self._verb("renew", {"permit": self.id, "hold": hold}))
            self._expires = now + hold
            return hold / 3
        except Exception as error:
            # An error of any kind must not end the renewal before the permit has ended.
            left = self._expires - time.monotonic()
            if isinstance(error, NotFoundError) or left <= 0:
                with self._lock:
                    # A renewal that a release overtakes finds no permit either.
                    self.lost = self.lost or not self._is_over
                return None
            return min(hold / 10, left)

    def _verb(self, verb: str, body: Mapping[str, Any]) -> Call:
        return post(target_path(self.target, verb), body)

    def report(
        self,
        *,
        cost: Optional[Cost] = None,
        limited: bool = False,
        retry_after: Optional[float] = None,
    ) -> Report:
        """Reports the cost of the work, or that its origin refused it because of a limit.

        Raises ``PermitLostError`` if outpace does not know the work any more.
        """
        if self.id is None:
            raise PermitLostError("outpace keeps too much other work to take a report about this")
        body = report_body(self.id, cost, limited, retry_after)
        try:
            return read_report(self._client._call(self._verb("report", body)).told)
        except NotFoundError as error:
            raise PermitLostError(error.detail) from error

    def settle(self, cost: Cost) -> Optional[Report]:
        """Replaces the estimated cost by the units that the work has used.

        Returns None if the report does not reach outpace, because the work is done anyway.
        """
        return self._try_report(cost=cost)

    def limited(self, retry_after: Optional[float] = None) -> Optional[Report]:
        """Reports that the origin refused the work, so that other work waits as well.

        ``retry_after`` is the wait in seconds that the origin asked for. Returns None if the report
        does not reach outpace.
        """
        return self._try_report(limited=True, retry_after=retry_after)

    def _try_report(self, **told: Any) -> Optional[Report]:
        try:
            return self.report(**told)
        except (PermitLostError, UnreachableError):
            return None

    def release(self) -> None:
        """Returns the permit. A second call does nothing.

        If outpace cannot be reached, the permit ends with its hold time.
        """
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        try:
            self._client._call(self._verb("release", {"permit": self.id}))
        except NotFoundError:
            self.lost = True
        except OutpaceError:
            pass

    def __enter__(self) -> Permit:
        if not self._has_begun:
            self._client._wait_for(self, self._spec)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.release()


class Outpace:
    """Client of one outpace. Threads can share it."""

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        token: Optional[str] = None,
        timeout: float = DEFAULT_TIMEOUT,
        hold: float = DEFAULT_HOLD,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """Creates a client. It connects with the first call.

        - ``url``: address of the proxy, by default ``OUTPACE_URL`` or ``http://127.0.0.1:8080``.
        - ``token``: ``NAME:TOKEN`` of a client, by default ``OUTPACE_CLIENT_TOKEN``.
        - ``timeout``: seconds for a connection, and for each answer beyond the time to wait.
        - ``hold``: seconds after which outpace releases a permit that is not renewed, such as that
          of a killed process. Permits are renewed after a third of it.
        """
        self._hold = hold
        self._transport = Transport(Endpoint.of(url, token), timeout, tls)
        self._renewer = Renewer()

    @overload
    def acquire(
        self,
        target: str,
        fn: Callable[[Permit], T],
        *,
        lane: Optional[str] = None,
        cost: Optional[int] = None,
        key: Optional[Key] = None,
        max_wait: Optional[float] = None,
        hold: Optional[float] = None,
    ) -> T: ...

    @overload
    def acquire(
        self,
        target: str,
        fn: None = None,
        *,
        lane: Optional[str] = None,
        cost: Optional[int] = None,
        key: Optional[Key] = None,
        max_wait: Optional[float] = None,
        hold: Optional[float] = None,
    ) -> Permit: ...

    def acquire(
        self,
        target: str,
        fn: Optional[Callable[[Permit], T]] = None,
        *,
        lane: Optional[str] = None,
        cost: Optional[int] = None,
        key: Optional[Key] = None,
        max_wait: Optional[float] = None,
        hold: Optional[float] = None,
    ) -> Union[T, Permit]:
        """Waits for a turn, calls ``fn`` with the permit, and returns its result.

        Without ``fn`` the result is for a ``with`` statement, which waits at its beginning. The
        permit is released at the end in both cases, also after an error.

        - ``lane``: lane in which to wait.
        - ``cost``: estimated units of each limit with a cost.
        - ``key``: value by which keyed limits count the work.
        - ``max_wait``: seconds to wait, at most. Refusals within this time are not raised but
          repeated after the time that outpace names. By default the first refusal is raised, and
          the target's ``max_wait`` holds.
        - ``hold``: see the constructor.
        """
        spec = WorkSpec(target, lane, cost, key, max_wait, hold or self._hold)
        permit = Permit(self, spec)
        if fn is None:
            return permit
        with permit:
            return fn(permit)

    def create_buffer(self, name: str, url: str, **fields: Any) -> BufferInfo:
        """Creates a buffer, or returns the same one if it exists.

        ``fields`` are those of ``POST /v1/buffers``, such as ``rate_limit`` and ``max_retries``.
        """
        answer = self._call(post("/v1/buffers", {"name": name, "url": url, **fields}))
        return read_buffer(answer.told)

    def push(
        self,
        buffer: str,
        body: Union[PushItem, str, bytes, None] = None,
        *,
        json: Any = None,
        idempotency_key: Optional[str] = None,
        max_wait: Optional[float] = None,
        **fields: Any,
    ) -> Receipt:
        """Stores one item in a buffer, by its id or name. The receipt comes once it is durable.

        ``fields`` are those of ``PushItem``. A second push with the same ``idempotency_key`` and
        body returns the first item. ``max_wait`` is the time in seconds within which a push that
        fails is repeated.
        """
        item = push_item(body, json, fields)
        return read_receipt(self._repeat(push_call(buffer, item, idempotency_key), max_wait))

    def push_batch(
        self,
        buffer: str,
        items: Sequence[PushItem],
        *,
        idempotency_key: Optional[str] = None,
        max_wait: Optional[float] = None,
    ) -> Sequence[Receipt]:
        """Stores several items in order, all or none."""
        call = batch_call(buffer, items, idempotency_key)
        return read_receipts(self._repeat(call, max_wait))

    def item(self, item: str) -> Item:
        """Returns the state of an item."""
        return read_item(self._call(Call("GET", item_path(item))).told)

    def close(self) -> None:
        """Closes the idle connections. Permits that are still held end with their hold time."""
        self._transport.close()

    def __enter__(self) -> Outpace:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _call(self, call: Call) -> Answer:
        return self._transport.call(call)

    def _repeat(self, call: Call, max_wait: Optional[float]) -> Answer:
        deadline = Deadline(max_wait, time.monotonic())
        while True:
            try:
                return self._call(call)
            except OutpaceError as error:
                pause = deadline.pause(error, time.monotonic())
                if pause is None:
                    raise
            time.sleep(pause)

    def _wait_for(self, permit: Permit, spec: WorkSpec) -> None:
        deadline = Deadline(spec.max_wait, time.monotonic())
        while True:
            remaining = deadline.remaining(time.monotonic())
            try:
                answer = self._transport.call(spec.call(remaining), remaining)
                return permit._begin(answer)
            except OutpaceError as error:
                pause = deadline.pause(error, time.monotonic())
                if pause is None:
                    raise
            time.sleep(pause)
