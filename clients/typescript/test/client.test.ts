/** Tests of the client against a real outpace. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import {
  AccessError,
  ConflictError,
  InvalidCallError,
  NotFoundError,
  Outpace,
  OutpaceError,
  PermitLostError,
  RefusedError,
  TemporaryError,
  UnexpectedAnswerError,
  UnreachableError,
  WaitTooLongError,
} from "outpace";

import { LONGEST, Server, targets, until, variable } from "./support.js";

const ONE = targets("{ concurrent: 1 }", ", max_wait: 30s");
const BUDGET = `targets:
  - name: api
    hosts: [api.test]
    max_wait: 1s
    limits:
      - { name: input, rate: "100/1h", cost: { default: 10 } }
      - { name: output, rate: "200/1h", cost: { default: 10 } }
`;

const one = () => 1;
const fail = () => {
  throw new Error("boom");
};

/** Runs a test with an outpace of its own. */
function outpaceTest(
  name: string,
  more: string,
  body: (server: Server, client: Outpace) => Promise<void>,
): void {
  test(name, { timeout: 4 * LONGEST * 1000 }, async () => {
    const server = await Server.with(more);
    try {
      await body(server, new Outpace({ url: server.url }));
    } finally {
      await server[Symbol.asyncDispose]();
    }
  });
}

outpaceTest("acquire returns the result of the function", ONE, async (_, client) => {
  assert.equal(await client.acquire("api", one), 1);
  assert.equal(await client.acquire("api", {}, async () => "x"), "x");
  const waited = await client.acquire("api", (permit) => {
    assert.equal(typeof permit.id, "string");
    assert.deepEqual([permit.target, permit.lost, permit.signal.aborted], ["api", false, false]);
    return permit.waitedSeconds;
  });
  assert.ok(waited >= 0);
});

const paced = targets('{ rate: "20/1s" }', ", max_wait: 30s");
outpaceTest("many works are paced", paced, async (_, client) => {
  const start = performance.now();
  const numbers = Array.from({ length: 50 }, (_, number) => number);
  const done = await Promise.all(numbers.map((number) => client.acquire("api", () => number)));
  assert.deepEqual(done, numbers);
  // At most 20 start in the first second, and 20 in the next one.
  assert.ok(performance.now() - start > 1400);
});

outpaceTest("the permit is returned after every outcome", ONE, async (_, client) => {
  const patient = { maxWaitSeconds: 5 };
  await assert.rejects(client.acquire("api", fail), /boom/);
  await assert.rejects(
    client.acquire("api", patient, () => Promise.reject(new Error("later"))),
    /later/,
  );
  const permit = await client.permit("api", patient);
  await Promise.all([permit.release(), permit.release()]);
  assert.equal(permit.lost, false);
  const disposed = await client.permit("api", patient);
  await disposed[Symbol.asyncDispose]();
  assert.equal(await client.acquire("api", patient, one), 1);
});

outpaceTest("the permit is renewed while the function runs", ONE, async (server, other) => {
  const client = new Outpace({ url: server.url, holdSeconds: 3 });
  await client.acquire("api", async (permit) => {
    // The other one waits for two hold times, and each is over without a renewal.
    await assert.rejects(other.acquire("api", { maxWaitSeconds: 6 }, fail), WaitTooLongError);
    assert.equal(permit.lost, false);
  });
  assert.equal(await other.acquire("api", { maxWaitSeconds: 5 }, one), 1);
});

outpaceTest("a killed process loses its permit after the hold time", ONE, async (server, client) => {
  const script = `import { Outpace } from "outpace";
    await new Outpace({ holdSeconds: 3 }).permit("api");
    console.log("holds");
    setTimeout(() => {}, 600_000);`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    env: { ...process.env, OUTPACE_URL: server.url },
    cwd: import.meta.dirname,
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(child.stdout, "data");
  await assert.rejects(client.acquire("api", { maxWaitSeconds: 0 }, fail), WaitTooLongError);
  child.kill("SIGKILL");
  await once(child, "exit");
  assert.equal(await client.acquire("api", { maxWaitSeconds: 20 }, one), 1);
});

const long = targets("{ concurrent: 1 }", ", max_wait: 10m");
outpaceTest("a wait that is aborted leaves the queue", long, async (server, client) => {
  await client.acquire("api", async () => {
    const aborts = [new AbortController(), new AbortController()];
    const waiting = aborts.map(({ signal }) => client.acquire("api", { signal }, one));
    const last = client.acquire("api", one);
    await until("three that wait", async () => (await server.waiting()) === 3);
    aborts[0]?.abort();
    await assert.rejects(waiting[0] ?? last, { name: "AbortError" });
    const reason = new Error("no longer needed");
    aborts[1]?.abort(reason);
    await assert.rejects(waiting[1] ?? last, reason);
    await until("one that waits", async () => (await server.waiting()) === 1);
    // The last one waits for the end of this function.
    void last.then((result) => assert.equal(result, 1));
  });
  const signal = AbortSignal.abort();
  await assert.rejects(client.acquire("api", { signal }, fail), { name: "AbortError" });
  assert.equal(await client.acquire("api", { maxWaitSeconds: 5 }, one), 1);
});

outpaceTest("a turn that comes after the abort is given back", ONE, async (server, other) => {
  const abort = new AbortController();
  const client = new Outpace({
    url: server.url,
    fetch: async (input, init) => {
      const { signal: _, ...rest } = init ?? {};
      const response = await fetch(input, rest);
      abort.abort();
      return response;
    },
  });
  const late = client.acquire("api", { signal: abort.signal }, fail);
  await assert.rejects(late, { name: "AbortError" });
  assert.equal(await other.acquire("api", { maxWaitSeconds: 5 }, one), 1);
});

const hourly = targets('{ name: pace, rate: "1/1h" }', ", max_wait: 30s");
outpaceTest("refusals name their reason and the time of a retry", hourly, async (_, client) => {
  await client.acquire("api", one);
  for (const maxWaitSeconds of [undefined, 0, 2]) {
    const error: unknown = await client.acquire("api", { maxWaitSeconds }, fail).catch((e) => e);
    assert.ok(error instanceof WaitTooLongError && error instanceof RefusedError);
    assert.deepEqual([error.status, error.reason], [429, "wait-too-long"]);
    assert.deepEqual([error.target, error.limit], ["api", "pace"]);
    assert.ok((error.retryAfterSeconds ?? 0) > 3000);
    assert.ok(error.detail && error.remedy && error.exchange);
    assert.match(String(error), /^WaitTooLongError: wait-too-long: /);
  }
});

const hurried = targets('{ rate: "2/1s", burst: 1 }', ", max_wait: 0s");
outpaceTest("refusals within the longest wait are repeated", hurried, async (_, client) => {
  await client.acquire("api", one);
  await assert.rejects(client.acquire("api", fail), WaitTooLongError);
  for (let times = 0; times < 3; times += 1) {
    assert.equal(await client.acquire("api", { maxWaitSeconds: 10 }, one), 1);
  }
  const abort = new AbortController();
  const hour = client.acquire("api", { maxWaitSeconds: 3600, signal: abort.signal }, one);
  abort.abort();
  await assert.rejects(hour, { name: "AbortError" });
});

const full = targets("{ concurrent: 1 }", ", max_wait: 30s, max_waiting: 0");
outpaceTest("refusals of a full queue are temporary", full, async (_, client) => {
  await client.acquire("api", async () => {
    const error: unknown = await client.acquire("api", fail).catch((e) => e);
    assert.ok(error instanceof TemporaryError);
    assert.equal(error.reason, "queue-full");
  });
});

const lanes = ", lanes: [{ name: live, weight: 3 }, { name: batch, weight: 1 }]";
const keyed = targets('{ rate: "100/1s", key: "header:x-key" }', lanes);
outpaceTest("refusals of wrong values say the right ones", keyed, async (_, client) => {
  assert.equal(await client.acquire("api", { key: "a", lane: "batch" }, one), 1);
  for (const [options, reason] of [
    [{ key: "a", lane: "none" }, "no-such-scope"],
    [{ lane: "live" }, "no-such-scope"],
    [{ key: "a", lane: "live", cost: 0 }, "call-invalid"],
    [{ key: "a", lane: "live", holdSeconds: -1 }, "call-invalid"],
  ] as const) {
    const error: unknown = await client.acquire("api", options, fail).catch((e) => e);
    assert.ok(error instanceof InvalidCallError, `${JSON.stringify(options)}: ${error}`);
    assert.equal(error.reason, reason);
  }
  for (const maxWaitSeconds of [-1, Number.NaN]) {
    const wrong = client.acquire("api", { key: "a", maxWaitSeconds }, fail);
    await assert.rejects(wrong, RangeError);
  }
  await assert.rejects(client.acquire("a/b", fail), NotFoundError);
  await assert.rejects(client.push("orders", { body: "x" }), { reason: "spool-disabled" });
});

const clients = `spool: {}
clients: [{ name: app, token: 0123456789abcdef, scopes: [read] }]
buffers: [{ name: orders, url: "http://api.test/" }]
${ONE}`;
outpaceTest("refusals of access name the token or the scope", clients, async (server) => {
  for (const token of [undefined, "app:wrong", "other:0123456789abcdef"]) {
    const client = new Outpace({ url: server.url, ...(token ? { token } : {}) });
    const error: unknown = await client.acquire("api", fail).catch((e) => e);
    assert.ok(error instanceof AccessError);
    assert.deepEqual([error.status, error.reason], [401, "client-token-unknown"]);
  }
  const client = new Outpace({ url: server.url, token: "app:0123456789abcdef" });
  assert.equal(await client.acquire("api", one), 1);
  const error: unknown = await client.push("orders", { body: "x" }).catch((e) => e);
  assert.ok(error instanceof AccessError);
  assert.deepEqual([error.status, error.reason], [403, "scope-missing"]);
});

const parts = targets('{ rate: "1/1h", key: ["header:x-key", "client_ip"] }');
outpaceTest("keys count separately", parts, async (_, client) => {
  for (const key of [["a", "1"], ["b", "1"], ["a", "2"]]) {
    assert.equal(await client.acquire("api", { key }, one), 1);
    const again = client.acquire("api", { key, maxWaitSeconds: 0 }, fail);
    await assert.rejects(again, WaitTooLongError);
  }
  for (const key of [undefined, "a", ["a"]]) {
    await assert.rejects(client.acquire("api", { key }, fail), InvalidCallError);
  }
});

outpaceTest("costs are estimated and settled", BUDGET, async (_, client) => {
  const fits = (cost: number) =>
    client
      .acquire("api", { cost, maxWaitSeconds: 0 }, async (permit) => {
        assert.ok(await permit.settle(0));
        return true;
      })
      .catch((error: unknown) => {
        assert.ok(error instanceof WaitTooLongError);
        return false;
      });
  const permit = await client.permit("api", { cost: 90 });
  assert.equal(await fits(20), false);
  assert.deepEqual((await permit.settle(10))?.cost, { input: 10, output: 10 });
  assert.deepEqual([await fits(80), await fits(95)], [true, false]);
  assert.equal((await permit.settle({ input: 0 }))?.cost["input"], 0);
  assert.deepEqual([await fits(95), await fits(195)], [true, false]);
  await assert.rejects(permit.settle({ requests: 1 }), InvalidCallError);
  await permit.release();
  await assert.rejects(permit.report({ cost: 1 }), PermitLostError);
  assert.equal(await permit.settle(1), undefined);
});

const fast = targets('{ rate: "100/1s" }', ", max_wait: 1s");
outpaceTest("a reported refusal holds all others", fast, async (server, client) => {
  assert.equal(await server.get("http://api.test/"), 200);
  const report = await client.acquire("api", (permit) => permit.limited(30));
  assert.equal(report?.blockedForSeconds, 30);
  assert.ok(report.blocked);
  const other = new Outpace({ url: server.url });
  const error: unknown = await other.acquire("api", fail).catch((e) => e);
  assert.ok(error instanceof WaitTooLongError && (error.retryAfterSeconds ?? 0) > 20);
  assert.equal(await server.get("http://api.test/"), 429);
});

outpaceTest("an outpace that restarts is waited for", ONE, async (server) => {
  const client = new Outpace({ url: server.url, holdSeconds: 0.6 });
  await client.acquire("api", async (permit) => {
    await server.kill();
    await assert.rejects(client.acquire("api", fail), UnreachableError);
    assert.equal(await permit.settle(1), undefined);
    await until("loss of the permit", () => permit.signal.aborted);
    assert.ok(permit.lost && permit.signal.reason instanceof PermitLostError);
  });
  const acquiring = client.acquire("api", { maxWaitSeconds: LONGEST }, one);
  await server.start();
  assert.equal(await acquiring, 1);
});

test("work without a permit runs and takes no report", async () => {
  let calls = 0;
  const client = new Outpace({
    fetch: () => {
      calls += 1;
      const told = { target: "api", waited: 0, permit: null, expires_in: null };
      return Promise.resolve(Response.json(told));
    },
  });
  await client.acquire("api", async (permit) => {
    assert.deepEqual([permit.id, permit.lost], [null, false]);
    assert.equal(await permit.settle(1), undefined);
    await assert.rejects(permit.report({ limited: true }), PermitLostError);
  });
  assert.equal(calls, 1);
});

test("silence ends with the timeout", async () => {
  const silent = createServer().listen(0, "127.0.0.1");
  await once(silent, "listening");
  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const client = new Outpace({ url, timeoutSeconds: 0.2 });
  for (const call of [
    client.acquire("api", { maxWaitSeconds: 0 }, fail),
    client.item("itm_1"),
    client.push("orders", { body: "x" }, { maxWaitSeconds: 0.5 }),
  ]) {
    await assert.rejects(call, UnreachableError);
  }
  silent.close();
});

test("other servers and bad addresses are recognised", async () => {
  const client = new Outpace({ url: `http://${variable("ORIGIN")}` });
  await assert.rejects(client.acquire("api", fail), UnexpectedAnswerError);
  await assert.rejects(client.acquire("api", fail), OutpaceError);
  for (const url of ["127.0.0.1:8080", "ftp://x", "http://"]) {
    assert.throws(() => new Outpace({ url }), TypeError);
  }
  assert.throws(() => new Outpace({ token: "secret" }), TypeError);
});

const spool = `spool: {}\n${ONE}`;
outpaceTest("receipts belong to idempotency keys", spool, async (_, client) => {
  const spec = { name: "orders", url: "http://api.test/orders", rate_limit: 50 };
  const buffer = await client.createBuffer(spec);
  assert.deepEqual([buffer.name, buffer.raw["rate_limit"]], ["orders", 50]);
  assert.equal((await client.createBuffer(spec)).id, buffer.id);
  const options = { idempotencyKey: "a" };
  const first = await client.push("orders", { json: { id: 1 } }, options);
  const again = await client.push("orders", { json: { id: 1 } }, options);
  assert.deepEqual([first.replayed, again.replayed, again.id], [false, true, first.id]);
  const other = await client.push("orders", { json: { id: 1 } });
  assert.ok(other.id !== first.id && other.seq > first.seq);
  const reused: unknown = await client.push("orders", { body: "x" }, options).catch((e) => e);
  assert.ok(reused instanceof ConflictError);
  assert.equal(reused.reason, "idempotency-key-reused");
  await assert.rejects(client.createBuffer({ ...spec, rate_limit: 1 }), ConflictError);
  await assert.rejects(client.push("none", { body: "x" }), NotFoundError);
});

outpaceTest("items are delivered with all their fields", spool, async (_, client) => {
  const buffer = await client.createBuffer({ name: "orders", url: "http://api.test/orders" });
  const receipts = [
    await client.push(buffer.id, { body: "text", headers: { "x-kind": "t" }, metadata: { n: 1 } }),
    await client.push("orders", { body: new Uint8Array([0, 255]), path: "/bytes" }),
    await client.push("orders", { json: [1], method: "PUT" }),
    ...(await client.pushBatch("orders", [{ body: "a" }, { body: new Uint8Array(20_000) }])),
  ];
  for (const { id } of receipts) {
    await until("delivery", async () => (await client.item(id)).state === "delivered");
  }
  const item = await client.item(receipts[0]?.id ?? "");
  assert.deepEqual([item.metadata, item.lastStatus, item.buffer], [{ n: 1 }, 200, buffer.id]);
  await assert.rejects(client.push("orders", { body: "x", json: 1 }), TypeError);
  const late = await client.push("orders", {
    body: "later",
    notBefore: new Date(Date.now() + 3_600_000),
    expiresAt: new Date(Date.now() + 7_200_000),
  });
  assert.match((await client.item(late.id)).state, /^(queued|waiting)$/);
});

outpaceTest("a push survives a restart and is stored once", spool, async (server, client) => {
  await client.createBuffer({ name: "orders", url: "http://api.test/orders" });
  const before = await client.push("orders", { body: "x" }, { idempotencyKey: "a" });
  await server.kill();
  const options = { idempotencyKey: "a", maxWaitSeconds: LONGEST };
  const pushing = client.push("orders", { body: "x" }, options);
  await server.start();
  const after = await pushing;
  assert.deepEqual([after.id, after.replayed], [before.id, true]);
});
