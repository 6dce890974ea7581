"""Tests of the client for asyncio, against a real outpace."""

from __future__ import annotations

import asyncio
import socket
import time
import unittest
from typing import Any
from unittest import mock

from support import LONGEST, Server, targets

import outpace
from outpace import AsyncOutpace, AsyncPermit

ONE = targets("{ concurrent: 1 }", ", max_wait: 30s")


class Boom(Exception):
    """Error of some work."""


async def fail(_: AsyncPermit) -> None:
    raise Boom


async def one(_: AsyncPermit) -> int:
    return 1


async def until(what: str, event: Any) -> None:
    """Lets the loop run until ``event()`` is true."""
    ends = time.monotonic() + LONGEST
    while not event():
        if time.monotonic() > ends:
            raise AssertionError(f"no {what}")
        await asyncio.sleep(0)


class Acquire(unittest.IsolatedAsyncioTestCase):
    async def test_returns_the_result_of_the_function(self) -> None:
        with Server(ONE) as server:
            async with AsyncOutpace(server.url) as client:
                self.assertEqual(await client.acquire("api", one), 1)
                async with client.acquire("api") as permit:
                    self.assertIsNotNone(permit.id)
                    self.assertGreaterEqual(permit.waited, 0.0)

    async def test_paces_the_work_of_many_tasks(self) -> None:
        with Server(targets('{ rate: "20/1s" }', ", max_wait: 30s")) as server:
            client = server.async_client()
            start = time.monotonic()

            async def work(number: int) -> int:
                async def own(_: AsyncPermit) -> int:
                    return number

                return await client.acquire("api", own)

            done = await asyncio.gather(*(work(number) for number in range(50)))
            self.assertEqual(done, list(range(50)))
            self.assertGreater(time.monotonic() - start, 1.4)

    async def test_returns_the_permit_after_every_outcome(self) -> None:
        with Server(ONE) as server:
            client = server.async_client()
            with self.assertRaises(Boom):
                await client.acquire("api", fail)
            with self.assertRaises(Boom):
                async with client.acquire("api", max_wait=5.0):
                    raise Boom
            holds = asyncio.Event()

            async def forever(_: AsyncPermit) -> None:
                holds.set()
                await asyncio.Event().wait()

            for is_cancelled_again in (False, True):
                holds.clear()
                held = asyncio.ensure_future(client.acquire("api", forever, max_wait=5.0))
                await holds.wait()
                # The permit is returned by a new connection, which takes several turns of the loop.
                while client._transport._idle:
                    client._transport._idle.pop().close()
                held.cancel()
                while is_cancelled_again and not held.done():
                    # Some of these cancellations come while the permit is returned.
                    held.cancel()
                    await asyncio.sleep(0)
                with self.assertRaises(asyncio.CancelledError):
                    await held
                self.assertEqual(await client.acquire("api", one, max_wait=5.0), 1)

    async def test_a_cancelled_wait_leaves_the_queue(self) -> None:
        with Server(targets("{ concurrent: 1 }", ", max_wait: 10m")) as server:
            client = server.async_client()
            async with client.acquire("api"):
                waiting = [asyncio.ensure_future(client.acquire("api", one)) for _ in range(3)]
                await until("three that wait", lambda: server.waiting() == 3)
                waiting[0].cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await asyncio.wait_for(waiting[0], LONGEST)
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(waiting[1], 0.01)
                await until("one that waits", lambda: server.waiting() == 1)
            self.assertEqual(await waiting[2], 1)
            self.assertEqual(await client.acquire("api", one, max_wait=5.0), 1)

    async def test_a_turn_that_comes_with_the_cancellation_is_given_back(self) -> None:
        with Server(ONE) as server:
            client, other = server.async_client(), server.async_client()
            call = client._transport.call

            async def cancelling(*asked: Any) -> Any:
                answer = await call(*asked)
                held.cancel()
                return answer

            with mock.patch.object(client._transport, "call", cancelling):
                held = asyncio.ensure_future(client.acquire("api", fail))
                with self.assertRaises(asyncio.CancelledError):
                    await held
            self.assertEqual(await other.acquire("api", one, max_wait=5.0), 1)

    async def test_renews_the_permit_while_the_function_runs(self) -> None:
        with Server(ONE) as server:
            client, other = server.async_client(hold=3.0), server.async_client()
            async with client.acquire("api") as permit:
                with self.assertRaises(outpace.WaitTooLongError):
                    await other.acquire("api", fail, max_wait=6.0)
                self.assertFalse(permit.lost)
            self.assertEqual(await other.acquire("api", one, max_wait=5.0), 1)


class Calls(unittest.IsolatedAsyncioTestCase):
    async def test_refusals_name_their_reason(self) -> None:
        with Server(targets('{ name: pace, rate: "1/1h" }', ", max_wait: 0s")) as server:
            client = server.async_client()
            await client.acquire("api", one)
            with self.assertRaises(outpace.WaitTooLongError) as caught:
                await client.acquire("api", fail, max_wait=3.0)
            error = caught.exception
            self.assertEqual((error.reason, error.limit), ("wait-too-long", "pace"))
            with self.assertRaises(outpace.NotFoundError):
                await client.acquire("none", fail)
            with self.assertRaises(outpace.InvalidCallError):
                await client.acquire("api", fail, lane="none")

    async def test_refusals_within_max_wait_are_repeated(self) -> None:
        with Server(targets('{ rate: "2/1s", burst: 1 }', ", max_wait: 0s")) as server:
            client = server.async_client()
            for _ in range(3):
                self.assertEqual(await client.acquire("api", one, max_wait=10.0), 1)

    async def test_reports_settle_and_block(self) -> None:
        limit = '{ name: tokens, rate: "100/1h", cost: { default: 10 } }'
        with Server(targets(limit, ", max_wait: 1s")) as server:
            client = server.async_client()
            async with client.acquire("api", cost=90) as permit:
                settled = await permit.settle({"tokens": 10})
                assert settled is not None
                self.assertEqual(settled.cost, {"tokens": 10})
            async with client.acquire("api", cost=80) as permit:
                blocked = await permit.limited(30.0)
                assert blocked is not None
                self.assertEqual(blocked.blocked_for, 30.0)
            with self.assertRaises(outpace.WaitTooLongError):
                await client.acquire("api", fail, cost=1)
            with self.assertRaises(outpace.PermitLostError):
                await permit.report()
            self.assertIsNone(await permit.settle(1))

    async def test_an_outpace_that_restarts_is_waited_for(self) -> None:
        with Server(ONE) as server:
            client = server.async_client(hold=0.6)
            async with client.acquire("api") as permit:
                server.kill()
                with self.assertRaises(outpace.UnreachableError):
                    await client.acquire("api", fail)
                await until("loss of the permit", lambda: permit.lost)
            acquiring = asyncio.ensure_future(client.acquire("api", one, max_wait=LONGEST))
            await asyncio.to_thread(server.start)
            self.assertEqual(await acquiring, 1)

    async def test_silence_and_other_servers_are_errors(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = "http://127.0.0.1:{}".format(silent.getsockname()[1])
            client = AsyncOutpace(url, timeout=0.2)
            with self.assertRaises(outpace.UnreachableError):
                await client.acquire("api", fail, max_wait=0.0)
        for answer in (
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            b"",
        ):
            with self.subTest(answer):
                with self.assertRaises(outpace.UnreachableError):
                    await asked(answer)
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            b"HTTP/1.0 502 Bad\r\n\r\n<html>",
            b'HTTP/1.1 404 No\r\nContent-Length: 13\r\n\r\n{"detail":"x"}',
        ):
            with self.subTest(answer):
                with self.assertRaises(outpace.UnexpectedAnswerError):
                    await asked(answer)
        chunked = (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'c;x=1\r\n{"reason":"q\r\n2\r\n"}\r\n0\r\nX: y\r\n\r\n'
        )
        with self.assertRaises(outpace.TemporaryError) as caught:
            await asked(chunked)
        self.assertEqual(caught.exception.reason, "q")

    async def test_buffers_give_receipts(self) -> None:
        with Server("spool: {}\n" + ONE) as server:
            client = server.async_client()
            await client.create_buffer("orders", "http://api.test/orders")
            first = await client.push("orders", json={"id": 1}, idempotency_key="a")
            again = await client.push("orders", json={"id": 1}, idempotency_key="a")
            self.assertEqual((first.replayed, again.replayed, again.id), (False, True, first.id))
            with self.assertRaises(outpace.ConflictError):
                await client.push("orders", "other", idempotency_key="a")
            for key in ("line\r\nbreak", "\u20ac"):
                with self.assertRaises(ValueError):
                    await client.push("orders", "x", idempotency_key=key)
            items = [outpace.PushItem(body="x"), outpace.PushItem(body=b"y")]
            receipts = await client.push_batch("orders", items)
            while (await client.item(receipts[1].id)).state != "delivered":
                pass

    def test_a_client_serves_one_loop_after_another(self) -> None:
        with Server(ONE) as server:
            client = server.async_client()
            for _ in range(2):
                self.assertEqual(asyncio.run(client.acquire("api", one)), 1)


async def asked(answer: bytes) -> None:
    """Makes a call to a server that sends this answer and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await AsyncOutpace(f"http://127.0.0.1:{port}", timeout=5.0).item("itm_1")


if __name__ == "__main__":
    unittest.main()
