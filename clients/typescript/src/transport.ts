import { type Problem, refusal, UnexpectedAnswerError, UnreachableError } from "./errors.js";

/** URL of an outpace with the default configuration on this machine. */
const DEFAULT_URL = "http://127.0.0.1:8080";

/** One call of the HTTP API. */
export interface Call {
  method: "GET" | "POST";
  path: string;
  body?: unknown;
  idempotencyKey?: string;
  /** Seconds that the answer may take beyond the timeout, or undefined for any time. */
  wait: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Answer to a call that succeeded. */
export interface Answer {
  status: number;
  told: Record<string, unknown>;
}

/** Address of outpace, and the means to reach it. */
export interface TransportOptions {
  url: string | undefined;
  token: string | undefined;
  timeoutSeconds: number;
  fetch: typeof globalThis.fetch | undefined;
}

/** Returns the value of a variable of the environment, where there is one. */
function variable(name: string): string | undefined {
  const scope = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return scope.process?.env?.[name] || undefined;
}

/** Makes calls of outpace's HTTP API by `fetch`. */
export class Transport {
  readonly #base: string;
  readonly #fields: Record<string, string>;
  readonly #timeout: number;
  readonly #fetch: typeof globalThis.fetch;

  constructor(options: TransportOptions) {
    const url = new URL(options.url ?? variable("OUTPACE_URL") ?? DEFAULT_URL);
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new TypeError(`the URL of outpace is ${url.href}; write it as ${DEFAULT_URL}`);
    }
    this.#base = url.origin + url.pathname.replace(/\/+$/, "");
    const token = options.token ?? variable("OUTPACE_CLIENT_TOKEN");
    if (token !== undefined && !token.includes(":")) {
      throw new TypeError("the token of a client has the form NAME:TOKEN");
    }
    this.#fields = { accept: "application/json" };
    if (token !== undefined) {
      this.#fields["outpace-client-token"] = token;
    }
    this.#timeout = options.timeoutSeconds;
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
  }

  /** Makes a call, and throws the error that its answer describes. */
  async call(call: Call): Promise<Answer> {
    const headers: Record<string, string> = { ...this.#fields };
    const init: RequestInit = { method: call.method, headers, redirect: "error" };
    if (call.body !== undefined) {
      headers["content-type"] = "application/json";
      init.body = JSON.stringify(call.body);
    }
    if (call.idempotencyKey !== undefined) {
      headers["idempotency-key"] = call.idempotencyKey;
    }
    const { signal, end } = this.#limits(call);
    init.signal = signal;
    let status: number;
    let text: string;
    try {
      const response = await this.#fetch(this.#base + call.path, init);
      status = response.status;
      text = await response.text();
    } catch (error) {
      // The caller's own reason is the caller's own error.
      call.signal?.throwIfAborted();
      throw new UnreachableError(`outpace at ${this.#base}: ${describe(error)}`, { cause: error });
    } finally {
      end();
    }
    return read(status, text);
  }

  /** Returns a signal for the timeout and the caller's signal, and a function that ends both. */
  #limits(call: Call): { signal: AbortSignal; end: () => void } {
    const limits = new AbortController();
    const abort = () => limits.abort(call.signal?.reason);
    if (call.signal?.aborted) {
      abort();
    }
    call.signal?.addEventListener("abort", abort, { once: true });
    const seconds = call.wait === undefined ? undefined : call.wait + this.#timeout;
    const late = () => limits.abort(new Error(`no answer within ${seconds} s`));
    // A timer takes at most 2^31 - 1 milliseconds.
    const timer = seconds === undefined ? undefined : setTimeout(late, Math.min(seconds * 1e3, 2e9));
    const end = () => {
      clearTimeout(timer);
      call.signal?.removeEventListener("abort", abort);
    };
    return { signal: limits.signal, end };
  }
}

/** Returns the texts of an error and its causes. `fetch` itself says only "fetch failed". */
function describe(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  return error.cause === undefined ? error.message : `${error.message}: ${describe(error.cause)}`;
}

function read(status: number, text: string): Answer {
  let told: unknown;
  try {
    told = JSON.parse(text);
  } catch {
    throw new UnexpectedAnswerError(status, text);
  }
  if (typeof told !== "object" || told === null || Array.isArray(told)) {
    throw new UnexpectedAnswerError(status, text);
  }
  if (status >= 200 && status < 300) {
    return { status, told: told as Record<string, unknown> };
  }
  if (!("reason" in told) || typeof told.reason !== "string") {
    throw new UnexpectedAnswerError(status, text);
  }
  throw refusal(status, told as Problem);
}
