/**
 * Compiles and runs the code blocks of the README in order, against the outpace that the README
 * configures. A block that cannot run has a comment `<!-- not run: REASON -->` above it.
 */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Server } from "./support.js";

const root = join(import.meta.dirname, "../..");
const dir = join(root, "build/readme");
const readme = readFileSync(join(root, "README.md"), "utf8");

/** Functions that the examples call. */
const PRELUDE = `export {};
const charge = async (): Promise<string> => "charged";
const askModel = async () => ({ status: 200, tokens: 740 });
void charge, askModel;
`;

/** Settings of the compiler for the blocks, which import the package by its name. */
const PROJECT = {
  extends: "../../test/tsconfig.json",
  compilerOptions: { rootDir: ".", outDir: ".", noUnusedLocals: false },
  include: ["."],
  exclude: [],
};

test("every block of the README runs or says why not", async () => {
  mkdirSync(dir, { recursive: true });
  const found = readme.matchAll(/(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$/gms);
  const blocks = [...found].map(([, remark = "", kind = "", text = ""]) => ({ remark, kind, text }));
  const config = blocks.filter(({ kind }) => kind === "yaml").map(({ text }) => text);
  const runs: string[] = [];
  for (const { remark, kind, text } of blocks) {
    if (kind === "yaml") {
      continue;
    }
    if (remark.startsWith("not run: ")) {
      assert.ok(remark.length > 20, text);
      continue;
    }
    assert.equal(kind, "ts", text);
    writeFileSync(join(dir, `block-${runs.length}.ts`), PRELUDE + text);
    runs.push(`block-${runs.length}.js`);
  }
  assert.ok(runs.length >= 5);
  writeFileSync(join(dir, "tsconfig.json"), JSON.stringify(PROJECT));
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  const compiled = spawnSync(process.execPath, [tsc, "--project", dir]);
  assert.equal(compiled.status, 0, compiled.stdout.toString());
  const server = await Server.with(config.join(""));
  try {
    for (const run of runs) {
      const env = { ...process.env, OUTPACE_URL: server.url };
      const ran = spawnSync(process.execPath, [join(dir, run)], { env });
      assert.equal(ran.status, 0, `${run}: ${ran.stdout.toString()} ${ran.stderr.toString()}`);
    }
  } finally {
    await server[Symbol.asyncDispose]();
  }
});
