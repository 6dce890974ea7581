import type { Answer } from "./transport.js";

/** Item for a buffer. At most one of `body` and `json` may be given. */
export interface PushItem {
  /** Request body as text or bytes. */
  body?: string | Uint8Array;
  /** Request body as a value that is sent as JSON. */
  json?: unknown;
  headers?: Readonly<Record<string, string>>;
  /** Method instead of the buffer's method, if the buffer allows it. */
  method?: string;
  /** Path with query instead of those in the buffer's URL, if the buffer allows it. */
  path?: string;
  /** Time after the push before which the item is not sent. */
  delaySeconds?: number;
  /** Earliest instant of sending, instead of `delaySeconds`. */
  notBefore?: Date;
  /** Instant from which the item is not sent any more. */
  expiresAt?: Date;
  /** JSON value that outpace returns with the item, and does not send. */
  metadata?: unknown;
}

/** Options of a push. */
export interface PushOptions {
  /** A second push with the same key and body returns the first item. Default: a random key. */
  idempotencyKey?: string;
  /** Time within which a push that fails is repeated. By default it is not repeated. */
  maxWaitSeconds?: number;
  signal?: AbortSignal;
}

/** Proof that outpace has stored an item, and will deliver it also after a crash. */
export interface Receipt {
  id: string;
  /** Place of the item in its buffer, which grows with each push. */
  seq: number;
  state: ItemState;
  /** True if an earlier push with the same idempotency key has stored the item. */
  replayed: boolean;
}

export type ItemState =
  | "queued"
  | "waiting"
  | "in_flight"
  | "delivered"
  | "dead"
  | "cancelled"
  | "expired";

/** State of an item in a buffer. `raw` has all fields of the HTTP API. */
export interface Item {
  id: string;
  seq: number;
  state: ItemState;
  buffer: string | null;
  attempts: number;
  lastStatus: number | null;
  lastError: string | null;
  metadata: unknown;
  raw: Readonly<Record<string, unknown>>;
}

/** Buffer to create. Fields that are missing have the defaults of outpace. */
export interface BufferSpec {
  name: string;
  url: string;
  method?: string;
  headers?: Readonly<Record<string, string>>;
  /** Highest rate in requests per second. */
  rate_limit?: number;
  max_retries?: number;
  backoff?: "exponential" | "linear" | "fixed" | readonly (number | string)[];
  order?: "strict" | "none";
  concurrency?: number;
  /** Time as text with a unit such as "30s", or as a number of seconds. */
  timeout?: number | string;
  max_age?: number | string;
  delivery?: "at_least_once" | "at_most_once";
  on_exhausted?: "dead_letter" | "block" | "drop";
  allow?: { methods?: readonly string[]; paths?: readonly string[] };
}

/** Buffer as outpace describes it. `raw` has all fields of the HTTP API. */
export interface BufferInfo {
  id: string;
  name: string;
  url: string;
  raw: Readonly<Record<string, unknown>>;
}

/** Returns the JSON object that stands for an item. */
export function itemBody(item: PushItem): Record<string, unknown> {
  if (item.body !== undefined && item.json !== undefined) {
    throw new TypeError("an item has either a `body` or a `json`");
  }
  const { body } = item;
  return {
    ...(typeof body === "string" ? { body } : {}),
    ...(body instanceof Uint8Array ? { body_base64: base64(body) } : {}),
    json: item.json,
    headers: item.headers,
    method: item.method,
    path: item.path,
    delay: item.delaySeconds,
    not_before: item.notBefore?.toISOString(),
    expires_at: item.expiresAt?.toISOString(),
    metadata: item.metadata,
  };
}

function base64(bytes: Uint8Array): string {
  let text = "";
  for (let from = 0; from < bytes.length; from += 8192) {
    text += String.fromCharCode(...bytes.subarray(from, from + 8192));
  }
  return btoa(text);
}

/** Returns the receipt for one pushed item. */
export function readReceipt({ status, told }: Answer): Receipt {
  return receipt(told, status === 200);
}

/** Returns the receipts for a batch. */
export function readReceipts({ told }: Answer): Receipt[] {
  const items = told["items"] as Record<string, unknown>[];
  return items.map((item) => receipt(item, told["replayed"] as boolean));
}

function receipt(told: Record<string, unknown>, replayed: boolean): Receipt {
  const { id, seq, state } = told as unknown as Receipt;
  return { id, seq, state, replayed };
}

/** Returns the item that an answer describes. */
export function readItem({ told }: Answer): Item {
  const { id, seq, state, buffer, attempts, metadata } = told as unknown as Item;
  return {
    id,
    seq,
    state,
    buffer,
    attempts,
    lastStatus: told["last_status"] as number | null,
    lastError: told["last_error"] as string | null,
    metadata,
    raw: told,
  };
}

/** Returns the buffer that an answer describes. */
export function readBuffer({ told }: Answer): BufferInfo {
  const { id, name, url } = told as unknown as BufferInfo;
  return { id, name, url, raw: told };
}
