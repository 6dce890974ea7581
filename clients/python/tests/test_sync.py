"""Tests of the client for threads, against a real outpace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import unittest
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Dict, List, Set, Tuple
from unittest import mock

from support import LONGEST, Server, targets, until

import outpace
from outpace import Outpace, PushItem
from outpace._core import Answer

ONE = targets("{ concurrent: 1 }", ", max_wait: 30s")
HOURLY = targets('{ name: pace, rate: "1/1h" }', ", max_wait: 30s")
BUDGET = """targets:
  - name: api
    hosts: [api.test]
    max_wait: 1s
    limits:
      - { name: input, rate: "100/1h", cost: { default: 10 } }
      - { name: output, rate: "200/1h", cost: { default: 10 } }
"""


class Boom(Exception):
    """Error of some work."""


def fail(_: outpace.Permit) -> None:
    raise Boom


def local_ports(client: Outpace) -> Set[int]:
    """Returns the ports of the client's idle connections."""
    idle = client._transport._idle
    return {connection.sock.getsockname()[1] for connection, _ in idle if connection.sock}


def is_delivered(client: Outpace, item: str) -> bool:
    return client.item(item).state == "delivered"


class Acquire(unittest.TestCase):
    def returning(self, result: object) -> Callable[[outpace.Permit], object]:
        return lambda _: result

    def test_returns_the_result_of_the_function(self) -> None:
        with Server(ONE) as server, Outpace(server.url) as client:
            for result in (7, None, [1]):
                self.assertEqual(client.acquire("api", self.returning(result)), result)
            with client.acquire("api") as permit:
                self.assertEqual((permit.target, permit.lost), ("api", False))
                self.assertIsNotNone(permit.id)
                self.assertGreaterEqual(permit.waited, 0.0)

    def test_paces_the_work_of_many_threads(self) -> None:
        with Server(targets('{ rate: "10/1s" }', ", max_wait: 30s")) as server:
            client = server.client()
            start = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                done = list(pool.map(lambda n: client.acquire("api", lambda _: n), range(25)))
            self.assertEqual(done, list(range(25)))
            # At most 10 start in the first second, and 10 in the next one.
            self.assertGreater(time.monotonic() - start, 1.4)

    def test_returns_the_permit_after_every_outcome(self) -> None:
        with Server(ONE) as server:
            client, other = server.client(), server.client()
            with self.assertRaises(Boom):
                client.acquire("api", fail)
            with self.assertRaises(Boom), other.acquire("api", max_wait=5.0):
                raise Boom
            with self.assertRaises(KeyboardInterrupt), client.acquire("api", max_wait=5.0):
                raise KeyboardInterrupt
            permit = client.acquire("api", max_wait=5.0).__enter__()
            permit.release()
            permit.release()
            self.assertEqual(other.acquire("api", lambda _: 1, max_wait=5.0), 1)
            self.assertFalse(permit.lost)

    def test_renews_the_permit_while_the_function_runs(self) -> None:
        with Server(ONE) as server:
            client, other = server.client(hold=3.0), server.client()
            with client.acquire("api") as permit:
                # The other one waits for two hold times, and each is over without a renewal.
                with self.assertRaises(outpace.WaitTooLongError):
                    other.acquire("api", fail, max_wait=6.0)
                self.assertFalse(permit.lost)
            self.assertEqual(other.acquire("api", lambda _: 1, max_wait=5.0), 1)

    def test_a_killed_process_loses_its_permit_after_the_hold_time(self) -> None:
        with Server(ONE) as server:
            script = (
                "import outpace, time\n"
                "with outpace.Outpace(hold=3.0).acquire('api'):\n"
                "    print('holds', flush=True)\n"
                "    time.sleep(600)\n"
            )
            held = subprocess.Popen(
                [sys.executable, "-c", script],
                env={**os.environ, "OUTPACE_URL": server.url},
                stdout=subprocess.PIPE,
            )
            assert held.stdout is not None
            with held.stdout:
                self.assertEqual(held.stdout.readline(), b"holds\n")
                client = server.client()
                with self.assertRaises(outpace.WaitTooLongError):
                    client.acquire("api", fail, max_wait=0.0)
                held.send_signal(signal.SIGKILL)
                held.wait()
            self.assertEqual(client.acquire("api", lambda _: 1, max_wait=20.0), 1)

    def test_a_fork_has_connections_and_renewals_of_its_own(self) -> None:
        with Server(targets("{ concurrent: 2 }")) as server:
            client = server.client(hold=3.0)
            with client.acquire("api") as permit:
                parents = local_ports(client)
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        with client.acquire("api") as own:
                            begun = own._expires
                            until("renewal", lambda: own._expires > begun)
                            code = 2 if parents & local_ports(client) else 0
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(code)
                self.assertEqual(os.waitpid(child, 0)[1], 0)
                self.assertFalse(permit.lost)
                permit.report()

    def test_work_without_a_permit_runs_and_takes_no_report(self) -> None:
        client = Outpace()
        told = {"target": "api", "waited": 0.0, "permit": None, "expires_in": None}
        answer = mock.Mock(return_value=Answer(200, told))
        with mock.patch.object(client._transport, "call", answer):
            with client.acquire("api") as permit:
                self.assertIsNone(permit.settle(1))
                with self.assertRaises(outpace.PermitLostError):
                    permit.report(limited=True)
        self.assertEqual((answer.call_count, permit.lost), (1, False))


class Refusals(unittest.TestCase):
    def test_name_their_reason_and_the_time_of_a_retry(self) -> None:
        with Server(HOURLY) as server:
            client = server.client()
            client.acquire("api", lambda _: 1)
            for max_wait in (None, 0.0, 2.0):
                with self.assertRaises(outpace.WaitTooLongError) as caught:
                    client.acquire("api", fail, max_wait=max_wait)
                error = caught.exception
                self.assertEqual((error.status, error.reason), (429, "wait-too-long"))
                self.assertEqual((error.target, error.limit), ("api", "pace"))
                assert error.retry_after is not None
                self.assertGreater(error.retry_after, 3000)
                self.assertTrue(error.detail and error.remedy and error.exchange)
                self.assertIn("wait-too-long", str(error))

    def test_within_max_wait_are_repeated_as_outpace_says(self) -> None:
        with Server(targets('{ rate: "2/1s", burst: 1 }', ", max_wait: 0s")) as server:
            client = server.client()
            client.acquire("api", lambda _: 1)
            with self.assertRaises(outpace.WaitTooLongError):
                client.acquire("api", fail)
            for _ in range(3):
                self.assertEqual(client.acquire("api", lambda _: 2, max_wait=10.0), 2)

    def test_of_full_queues_are_temporary(self) -> None:
        full = targets("{ concurrent: 1 }", ", max_wait: 30s, max_waiting: 0")
        with Server(full) as server:
            client = server.client()
            with client.acquire("api"), self.assertRaises(outpace.TemporaryError) as caught:
                client.acquire("api", fail)
            self.assertEqual(caught.exception.reason, "queue-full")

    def test_of_wrong_values_say_the_right_ones(self) -> None:
        more = ", lanes: [{ name: live, weight: 3 }, { name: batch, weight: 1 }]"
        keyed = targets('{ rate: "100/1s", key: "header:x-key" }', more)
        with Server(keyed) as server:
            client = server.client()
            self.assertEqual(client.acquire("api", lambda _: 1, key="a", lane="batch"), 1)
            cases: List[Tuple[Dict[str, Any], str]] = [
                ({"key": "a", "lane": "none"}, "no-such-scope"),
                ({"lane": "live"}, "no-such-scope"),
                ({"key": "a", "lane": "live", "cost": 0}, "call-invalid"),
                ({"key": "a", "lane": "live", "hold": -1.0}, "call-invalid"),
            ]
            for wrong, reason in cases:
                with self.subTest(wrong), self.assertRaises(outpace.InvalidCallError) as caught:
                    client.acquire("api", fail, **wrong)
                self.assertEqual(caught.exception.reason, reason)
            for max_wait in (-1.0, float("nan")):
                with self.assertRaises(ValueError):
                    client.acquire("api", fail, key="a", max_wait=max_wait)
            with self.assertRaises(outpace.NotFoundError) as missing:
                client.acquire("a/b", fail)
            self.assertIn("`a/b`", missing.exception.detail.replace("a%2Fb", "a/b"))
            with self.assertRaises(outpace.NotFoundError) as disabled:
                client.push("orders", "x")
            self.assertEqual(disabled.exception.reason, "spool-disabled")

    def test_of_clients_without_a_token_or_a_scope(self) -> None:
        clients = (
            "spool: {}\n"
            "clients: [{ name: app, token: 0123456789abcdef, scopes: [read] }]\n"
            'buffers: [{ name: orders, url: "http://api.test/" }]\n'
        )
        with Server(clients + ONE) as server:
            for token in (None, "app:wrong", "other:0123456789abcdef"):
                with self.subTest(token), self.assertRaises(outpace.AccessError) as unknown:
                    server.client(token=token).acquire("api", fail)
                self.assertEqual(unknown.exception.reason, "client-token-unknown")
                self.assertEqual(unknown.exception.status, 401)
            client = server.client(token="app:0123456789abcdef")
            self.assertEqual(client.acquire("api", lambda _: 1), 1)
            with self.assertRaises(outpace.AccessError) as missing:
                client.push("orders", "x")
            error = missing.exception
            self.assertEqual((error.status, error.reason), (403, "scope-missing"))


class Scopes(unittest.TestCase):
    def test_keys_count_separately(self) -> None:
        keyed = targets('{ rate: "1/1h", key: ["header:x-key", "client_ip"] }')
        with Server(keyed) as server:
            client = server.client()
            for key in (["a", "1"], ["b", "1"], ["a", "2"]):
                self.assertEqual(client.acquire("api", lambda _: 1, key=key), 1)
                with self.assertRaises(outpace.WaitTooLongError):
                    client.acquire("api", fail, key=key, max_wait=0.0)
            for missing in (None, "a", ["a"]):
                with self.assertRaises(outpace.InvalidCallError):
                    client.acquire("api", fail, key=missing)

    def test_costs_are_estimated_and_settled(self) -> None:
        with Server(BUDGET) as server:
            client = server.client()

            def fits(cost: int) -> bool:
                try:
                    with client.acquire("api", cost=cost, max_wait=0.0) as permit:
                        return permit.settle(0) is not None
                except outpace.WaitTooLongError:
                    return False

            with client.acquire("api", cost=90) as permit:
                self.assertFalse(fits(20))
                report = permit.settle(10)
                assert report is not None
                self.assertEqual(report.cost, {"input": 10, "output": 10})
                self.assertEqual((fits(80), fits(95)), (True, False))
                report = permit.settle({"input": 0})
                assert report is not None
                self.assertEqual(report.cost["input"], 0)
                self.assertEqual((fits(95), fits(195)), (True, False))
                with self.assertRaises(outpace.InvalidCallError):
                    permit.settle({"requests": 1})
            with self.assertRaises(outpace.PermitLostError):
                permit.report(cost=1)
            self.assertIsNone(permit.settle(1))

    def test_a_reported_refusal_holds_all_others(self) -> None:
        with Server(targets('{ rate: "100/1s" }', ", max_wait: 1s")) as server:
            client, other = server.client(), server.client()
            self.assertEqual(server.get("http://api.test/"), 200)
            with client.acquire("api") as permit:
                report = permit.limited(30.0)
            assert report is not None and report.blocked is not None
            self.assertEqual(report.blocked_for, 30.0)
            with self.assertRaises(outpace.WaitTooLongError) as caught:
                other.acquire("api", fail)
            assert caught.exception.retry_after is not None
            self.assertGreater(caught.exception.retry_after, 20.0)
            self.assertEqual(server.get("http://api.test/"), 429)

    def test_a_short_block_ends_by_itself(self) -> None:
        with Server(targets('{ rate: "100/1s" }', ", max_wait: 10s")) as server:
            client = server.client()
            client.acquire("api", lambda permit: permit.limited(2.0))
            with client.acquire("api") as permit:
                self.assertGreater(permit.waited, 0.1)


class Connections(unittest.TestCase):
    def test_an_outpace_that_restarts_is_waited_for(self) -> None:
        with Server(ONE) as server:
            client = server.client(hold=0.6)
            with client.acquire("api") as permit:
                server.kill()
                with self.assertRaises(outpace.UnreachableError):
                    client.acquire("api", fail)
                self.assertIsNone(permit.settle(1))
                until("loss of the permit", lambda: permit.lost)
            starting = threading.Timer(0.3, server.start)
            starting.start()
            self.assertEqual(client.acquire("api", lambda _: 1, max_wait=LONGEST), 1)
            starting.join()

    def test_silence_ends_with_the_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = "http://127.0.0.1:{}".format(silent.getsockname()[1])
            client = Outpace(url, timeout=0.2)
            for call in (
                lambda: client.acquire("api", fail, max_wait=0.0),
                lambda: client.item("itm_1"),
                lambda: client.push("orders", "x", max_wait=0.5),
            ):
                with self.assertRaises(outpace.UnreachableError):
                    call()
        with self.assertRaises(outpace.UnreachableError):
            client.acquire("api", fail, max_wait=0.3)

    def test_another_server_is_recognised(self) -> None:
        with Outpace("http://" + os.environ["ORIGIN"]) as client:
            with self.assertRaises(outpace.UnexpectedAnswerError) as caught:
                client.acquire("api", fail)
        self.assertEqual(caught.exception.status, 200)

    def test_bad_addresses_and_tokens_are_told_at_the_start(self) -> None:
        for url in ("127.0.0.1:8080", "ftp://x", "http://"):
            with self.subTest(url), self.assertRaises(ValueError):
                Outpace(url)
        with self.assertRaises(ValueError):
            Outpace(token="secret")


class Buffers(unittest.TestCase):
    def test_receipts_belong_to_idempotency_keys(self) -> None:
        with Server("spool: {}\n" + ONE) as server:
            client = server.client()
            buffer = client.create_buffer("orders", "http://api.test/orders", rate_limit=50)
            self.assertEqual((buffer.name, buffer.raw["rate_limit"]), ("orders", 50.0))
            self.assertEqual(
                client.create_buffer("orders", buffer.url, rate_limit=50).id, buffer.id
            )
            first = client.push("orders", json={"id": 1}, idempotency_key="a")
            again = client.push("orders", json={"id": 1}, idempotency_key="a")
            self.assertEqual((first.replayed, again.replayed), (False, True))
            self.assertEqual(first.id, again.id)
            other = client.push("orders", json={"id": 1})
            self.assertNotEqual(first.id, other.id)
            self.assertGreater(other.seq, first.seq)
            with self.assertRaises(outpace.ConflictError) as reused:
                client.push("orders", "other", idempotency_key="a")
            self.assertEqual(reused.exception.reason, "idempotency-key-reused")
            with self.assertRaises(outpace.ConflictError):
                client.create_buffer("orders", "http://api.test/x")
            with self.assertRaises(outpace.NotFoundError):
                client.push("none", "x")

    def test_items_are_delivered_with_all_their_fields(self) -> None:
        with Server("spool: {}\n" + ONE) as server:
            client = server.client()
            buffer = client.create_buffer("orders", "http://api.test/orders")
            receipts = [
                client.push(buffer.id, "text", headers={"x-kind": "text"}, metadata={"n": 1}),
                client.push("orders", b"\x00\xff", path="/bytes"),
                client.push("orders", PushItem(json=[1], method="PUT")),
                *client.push_batch("orders", [PushItem(body="a"), PushItem(body=b"b")]),
            ]
            self.assertEqual([receipt.seq for receipt in receipts], sorted(r.seq for r in receipts))
            for receipt in receipts:
                until("delivery", partial(is_delivered, client, receipt.id))
            self.assertEqual(client.item(receipts[0].id).metadata, {"n": 1})
            with self.assertRaises(ValueError):
                client.push("orders", "x", json=1)
            late = client.push("orders", "later", delay=3600)
            self.assertIn(client.item(late.id).state, ("queued", "waiting"))

    def test_a_push_survives_a_restart_and_is_stored_once(self) -> None:
        with Server("spool: {}\n" + ONE) as server:
            client = server.client()
            client.create_buffer("orders", "http://api.test/orders")
            before = client.push("orders", "x", idempotency_key="a")
            server.kill()
            starting = threading.Timer(0.3, server.start)
            starting.start()
            after = client.push("orders", "x", idempotency_key="a", max_wait=LONGEST)
            starting.join()
            self.assertEqual((after.id, after.replayed), (before.id, True))


if __name__ == "__main__":
    unittest.main()
