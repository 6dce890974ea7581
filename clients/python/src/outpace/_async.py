"""Client for asyncio."""

from __future__ import annotations

import asyncio
import ssl
import time
from types import TracebackType
from typing import (
    Any,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
    overload,
)

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
from ._http_async import AsyncTransport
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


class AsyncPermit:
    """Right to do some work now. It is renewed until it is released."""

    def __init__(self, client: AsyncOutpace, spec: WorkSpec) -> None:
        self._client = client
        self._spec = spec
        self._is_over = True
        self._has_begun = False
        self._hold = spec.hold
        self._expires = 0.0
        self._renewal: Optional[asyncio.Task[None]] = None
        #: Name of the target.
        self.target = spec.target
        #: Id of the permit, or None if outpace keeps too much other work for its reports.
        self.id: Optional[str] = None
        #: Seconds for which outpace let the work wait.
        self.waited = 0.0
        #: True if the permit ended before its work, so other work may run at the same time.
        self.lost = False

    def _begin(self, answer: Answer) -> None:
        self._has_begun = True
        self.id = answer.told["permit"]
        self.waited = answer.told["waited"]
        if self.id is not None:
            # outpace cuts a hold time that is longer than an hour.
            self._hold = float(answer.told["expires_in"])
            self._expires = time.monotonic() + self._hold
            self._is_over = False
            self._renewal = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        hold = self._hold
        pause = hold / 3
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            try:
                await self._client._call(self._verb("renew", {"permit": self.id, "hold": hold}))
                self._expires = now + hold
                pause = hold / 3
            except Exception as error:
                # An error of any kind must not end the renewal before the permit has ended.
                left = self._expires - time.monotonic()
                if isinstance(error, NotFoundError) or left <= 0:
                    self.lost = True
                    return
                pause = min(hold / 10, left)

    def _verb(self, verb: str, body: Mapping[str, Any]) -> Call:
        return post(target_path(self.target, verb), body)

    async def report(
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
            return read_report((await self._client._call(self._verb("report", body))).told)
        except NotFoundError as error:
            raise PermitLostError(error.detail) from error

    async def settle(self, cost: Cost) -> Optional[Report]:
        """Replaces the estimated cost by the units that the work has used.

        Returns None if the report does not reach outpace, because the work is done anyway.
        """
        return await self._try_report(cost=cost)

    async def limited(self, retry_after: Optional[float] = None) -> Optional[Report]:
        """Reports that the origin refused the work, so that other work waits as well.

        ``retry_after`` is the wait in seconds that the origin asked for. Returns None if the report
        does not reach outpace.
        """
        return await self._try_report(limited=True, retry_after=retry_after)

    async def _try_report(self, **told: Any) -> Optional[Report]:
        try:
            return await self.report(**told)
        except (PermitLostError, UnreachableError):
            return None

    async def release(self) -> None:
        """Returns the permit. A second call does nothing.

        If outpace cannot be reached, the permit ends with its hold time.
        """
        if self._is_over:
            return
        self._is_over = True
        if self._renewal is not None:
            self._renewal.cancel()
        # The call is made to its end also if the task that holds the permit is cancelled again.
        await asyncio.shield(asyncio.ensure_future(self._release()))

    async def _release(self) -> None:
        try:
            await self._client._call(self._verb("release", {"permit": self.id}))
        except NotFoundError:
            self.lost = True
        except OutpaceError:
            pass

    async def __aenter__(self) -> AsyncPermit:
        if not self._has_begun:
            await self._client._wait_for(self, self._spec)
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.release()


class AsyncOutpace:
    """Client of one outpace. Tasks of one event loop can share it."""

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        token: Optional[str] = None,
        timeout: float = DEFAULT_TIMEOUT,
        hold: float = DEFAULT_HOLD,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """Creates a client. The arguments are those of ``Outpace``."""
        self._hold = hold
        self._transport = AsyncTransport(Endpoint.of(url, token), timeout, tls)

    @overload
    def acquire(
        self,
        target: str,
        fn: Callable[[AsyncPermit], Awaitable[T]],
        *,
        lane: Optional[str] = None,
        cost: Optional[int] = None,
        key: Optional[Key] = None,
        max_wait: Optional[float] = None,
        hold: Optional[float] = None,
    ) -> Coroutine[Any, Any, T]: ...

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
    ) -> AsyncPermit: ...

    def acquire(
        self,
        target: str,
        fn: Optional[Callable[[AsyncPermit], Awaitable[T]]] = None,
        *,
        lane: Optional[str] = None,
        cost: Optional[int] = None,
        key: Optional[Key] = None,
        max_wait: Optional[float] = None,
        hold: Optional[float] = None,
    ) -> Union[Coroutine[Any, Any, T], AsyncPermit]:
        """Waits for a turn, awaits ``fn(permit)``, and returns its result.

        Without ``fn`` the result is for an ``async with`` statement. The arguments are those of
        ``Outpace.acquire``.
        """
        spec = WorkSpec(target, lane, cost, key, max_wait, hold or self._hold)
        permit = AsyncPermit(self, spec)
        return permit if fn is None else self._run(permit, fn)

    async def _run(self, permit: AsyncPermit, fn: Callable[[AsyncPermit], Awaitable[T]]) -> T:
        async with permit:
            return await fn(permit)

    async def create_buffer(self, name: str, url: str, **fields: Any) -> BufferInfo:
        """Creates a buffer, or returns the same one if it exists.

        ``fields`` are those of ``POST /v1/buffers``, such as ``rate_limit`` and ``max_retries``.
        """
        answer = await self._call(post("/v1/buffers", {"name": name, "url": url, **fields}))
        return read_buffer(answer.told)

    async def push(
        self,
        buffer: str,
        body: Union[PushItem, str, bytes, None] = None,
        *,
        json: Any = None,
        idempotency_key: Optional[str] = None,
        max_wait: Optional[float] = None,
        **fields: Any,
    ) -> Receipt:
        """Stores one item in a buffer. The arguments are those of ``Outpace.push``."""
        call = push_call(buffer, push_item(body, json, fields), idempotency_key)
        return read_receipt(await self._repeat(call, max_wait))

    async def push_batch(
        self,
        buffer: str,
        items: Sequence[PushItem],
        *,
        idempotency_key: Optional[str] = None,
        max_wait: Optional[float] = None,
    ) -> Sequence[Receipt]:
        """Stores several items in order, all or none."""
        call = batch_call(buffer, items, idempotency_key)
        return read_receipts(await self._repeat(call, max_wait))

    async def item(self, item: str) -> Item:
        """Returns the state of an item."""
        return read_item((await self._call(Call("GET", item_path(item)))).told)

    def close(self) -> None:
        """Closes the idle connections. Permits that are still held end with their hold time."""
        self._transport.close()

    async def __aenter__(self) -> AsyncOutpace:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    async def _call(self, call: Call) -> Answer:
        return await self._transport.call(call)

    async def _repeat(self, call: Call, max_wait: Optional[float]) -> Answer:
        deadline = Deadline(max_wait, time.monotonic())
        while True:
            try:
                return await self._call(call)
            except OutpaceError as error:
                pause = deadline.pause(error, time.monotonic())
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _wait_for(self, permit: AsyncPermit, spec: WorkSpec) -> None:
        deadline = Deadline(spec.max_wait, time.monotonic())
        while True:
            remaining = deadline.remaining(time.monotonic())
            asking = asyncio.ensure_future(self._transport.call(spec.call(remaining), remaining))
            try:
                return permit._begin(await asyncio.shield(asking))
            except asyncio.CancelledError:
                asking.cancel()
                await asyncio.wait({asking})
                # An answer that has just come is a permit, which must be returned.
                if not asking.cancelled() and asking.exception() is None:
                    permit._begin(asking.result())
                    await permit.release()
                raise
            except OutpaceError as error:
                pause = deadline.pause(error, time.monotonic())
                if pause is None:
                    raise
            await asyncio.sleep(pause)
