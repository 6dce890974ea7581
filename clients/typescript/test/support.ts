/**
 * A real outpace for the tests, as a process of its own.
 *
 * `OUTPACE_BIN` is the program, and `ORIGIN` is the address of an origin that answers any path with
 * 200. The Rust test `clients_sdk` sets both.
 */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

/** Seconds to wait for an event before a test fails. */
export const LONGEST = 30;

export function variable(name: string): string {
  const value = process.env[name];
  assert.ok(value, `set ${name}`);
  return value;
}

/** outpace with a configuration of its own, until the end of an `await using` declaration. */
export class Server {
  url = "";
  readonly #more: string;
  readonly #dir = mkdtempSync(join(tmpdir(), "outpace-"));
  #port = "0";
  #admin = "";
  #process: ChildProcess | undefined;

  private constructor(more: string) {
    this.#more = more;
  }

  static async with(more: string): Promise<Server> {
    const server = new Server(more);
    await server.start();
    return server;
  }

  /** Starts the program, after a kill on the same port. */
  async start(): Promise<void> {
    const path = join(this.#dir, "outpace.yaml");
    const config = `listen: 127.0.0.1:${this.#port}
admin: { listen: "127.0.0.1:0" }
data_dir: ${this.#dir}/data
egress: { allow: ["127.0.0.1"], resolve: { "api.test": "${variable("ORIGIN")}" } }
${this.#more}
`;
    writeFileSync(path, config);
    const stdio: ["ignore", "ignore", "pipe"] = ["ignore", "ignore", "pipe"];
    const child = spawn(variable("OUTPACE_BIN"), ["serve", "--config", path], { stdio });
    this.#process = child;
    const lines: string[] = [];
    const reader = createInterface({ input: child.stderr });
    const ready = await new Promise<Record<string, string>>((resolve, reject) => {
      reader.on("line", (line) => {
        lines.push(line);
        if (line.startsWith("{")) {
          const event = JSON.parse(line) as Record<string, string>;
          if (event["message"] === "ready") {
            resolve(event);
          }
        }
      });
      reader.on("close", () => reject(new Error(`outpace did not start: ${lines.join("\n")}`)));
    });
    this.#port = ready["listen"]?.split(":").at(-1) ?? "";
    this.url = `http://127.0.0.1:${this.#port}`;
    this.#admin = `http://${ready["admin"]}`;
  }

  /** Ends the program with SIGKILL. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child && child.exitCode === null && child.signalCode === null) {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
  }

  /** Returns the number of requests and works that wait for their turn. */
  async waiting(): Promise<number> {
    const text = await (await fetch(`${this.#admin}/metrics`)).text();
    return Number(/^outpace_waiting\{target="api"\} (\S+)$/m.exec(text)?.[1] ?? 0);
  }

  /** Returns the status of a request that goes through the proxy. */
  get(url: string): Promise<number> {
    const { hostname, port } = new URL(this.url);
    return new Promise((resolve, reject) => {
      const asked = request({ hostname, port, path: url, agent: false }, (response) => {
        response.resume();
        resolve(response.statusCode ?? 0);
      });
      asked.on("error", reject);
      asked.setHeader("host", new URL(url).host);
      asked.end();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/** Returns the configuration of one target named `api`. */
export function targets(limits: string, more = ""): string {
  return `targets:\n  - { name: api, hosts: [api.test], limits: [${limits}]${more} }`;
}

/** Asks until the answer is true. Each question is a call of the program or a turn of the loop. */
export async function until(what: string, event: () => boolean | Promise<boolean>): Promise<void> {
  const ends = Date.now() + LONGEST * 1000;
  while (!(await event())) {
    assert.ok(Date.now() < ends, `no ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
