import {
  type BufferInfo,
  type BufferSpec,
  type Item,
  itemBody,
  type PushItem,
  type PushOptions,
  readBuffer,
  readItem,
  readReceipt,
  readReceipts,
  type Receipt,
} from "./buffers.js";
import { Deadline, sleep } from "./deadline.js";
import { OutpaceError } from "./errors.js";
import { Permit } from "./permit.js";
import { type Answer, type Call, Transport } from "./transport.js";

/** Default time for which outpace keeps a permit without a renewal. */
const HOLD_SECONDS = 30;
/** Default time for an answer that no limit delays. */
const TIMEOUT_SECONDS = 10;
/** Longest wait of one call. Node's `fetch` gives up after 300 seconds without an answer. */
const CALL_WAIT_MAX_SECONDS = 240;

/** Options of a client. */
export interface OutpaceOptions {
  /** Address of the proxy. Default: `OUTPACE_URL`, or `http://127.0.0.1:8080`. */
  url?: string;
  /** `NAME:TOKEN` of a client. Default: `OUTPACE_CLIENT_TOKEN`. */
  token?: string;
  /** Time for each answer beyond the time to wait. Default: 10. */
  timeoutSeconds?: number;
  /**
   * Time after which outpace releases a permit that is not renewed, such as that of a killed
   * process. Permits are renewed after a third of it. Default: 30.
   */
  holdSeconds?: number;
  /** Function for calls instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

/** Options of some work that waits for its turn. */
export interface AcquireOptions {
  /** Lane in which to wait. */
  lane?: string | undefined;
  /** Estimated units of each limit with a cost. */
  cost?: number | undefined;
  /** Value by which keyed limits count the work, or one value for each part of the key. */
  key?: string | readonly string[] | undefined;
  /**
   * Longest time to wait. Refusals within this time are not thrown but repeated after the time that
   * outpace names. By default the first refusal is thrown, and the target's `max_wait` holds.
   */
  maxWaitSeconds?: number | undefined;
  /** See the option of the client. */
  holdSeconds?: number | undefined;
  /** Signal that ends the wait. It does not end the work. */
  signal?: AbortSignal | undefined;
}

/** Function that does some work while its permit is held. */
export type Work<T> = (permit: Permit) => T | PromiseLike<T>;

/** Client of one outpace. */
export class Outpace {
  readonly #transport: Transport;
  readonly #hold: number;

  constructor(options: OutpaceOptions = {}) {
    this.#hold = options.holdSeconds ?? HOLD_SECONDS;
    this.#transport = new Transport({
      url: options.url,
      token: options.token,
      timeoutSeconds: options.timeoutSeconds ?? TIMEOUT_SECONDS,
      fetch: options.fetch,
    });
  }

  /**
   * Waits for a turn, calls the function with the permit, and returns its result.
   *
   * The permit is released at the end, also after an error.
   */
  acquire<T>(target: string, work: Work<T>): Promise<T>;
  acquire<T>(target: string, options: AcquireOptions, work: Work<T>): Promise<T>;
  async acquire<T>(target: string, second: AcquireOptions | Work<T>, third?: Work<T>): Promise<T> {
    const [options, work] = typeof second === "function" ? [{}, second] : [second, third];
    if (work === undefined) {
      throw new TypeError("`acquire` needs a function; `permit` returns a permit instead");
    }
    const permit = await this.permit(target, options);
    try {
      return await work(permit);
    } finally {
      await permit.release();
    }
  }

  /** Waits for a turn, and returns the permit. The caller must release it. */
  async permit(target: string, options: AcquireOptions = {}): Promise<Permit> {
    const hold = options.holdSeconds ?? this.#hold;
    const { lane, cost, key, signal } = options;
    const answer = await this.#repeat(options.maxWaitSeconds, signal, (remaining) => {
      const wait = remaining === undefined ? undefined : Math.min(remaining, CALL_WAIT_MAX_SECONDS);
      const path = `/v1/targets/${encodeURIComponent(target)}/acquire`;
      const body = { lane, cost, key, max_wait: wait, hold };
      return { method: "POST", path, body, wait, signal };
    });
    const permit = new Permit(this.#transport, target, answer);
    if (signal?.aborted) {
      await permit.release();
      signal.throwIfAborted();
    }
    return permit;
  }

  /** Creates a buffer, or returns the same one if it exists. */
  async createBuffer(spec: BufferSpec): Promise<BufferInfo> {
    const call: Call = { method: "POST", path: "/v1/buffers", body: spec, wait: 0 };
    return readBuffer(await this.#transport.call(call));
  }

  /** Stores one item in a buffer, by its id or name. The receipt comes once it is durable. */
  async push(buffer: string, item: PushItem, options: PushOptions = {}): Promise<Receipt> {
    return readReceipt(await this.#push(buffer, "items", itemBody(item), options));
  }

  /** Stores several items in order, all or none. */
  async pushBatch(
    buffer: string,
    items: readonly PushItem[],
    options: PushOptions = {},
  ): Promise<Receipt[]> {
    return readReceipts(await this.#push(buffer, "batch", items.map(itemBody), options));
  }

  /** Returns the state of an item. */
  async item(id: string): Promise<Item> {
    const path = `/v1/items/${encodeURIComponent(id)}`;
    return readItem(await this.#transport.call({ method: "GET", path, wait: 0 }));
  }

  #push(buffer: string, verb: string, body: unknown, options: PushOptions): Promise<Answer> {
    const path = `/v1/buffers/${encodeURIComponent(buffer)}/${verb}`;
    // The key makes a repetition harmless.
    const idempotencyKey = options.idempotencyKey ?? crypto.randomUUID();
    const { signal } = options;
    const call: Call = { method: "POST", path, body, idempotencyKey, wait: 0, signal };
    return this.#repeat(options.maxWaitSeconds, signal, () => call);
  }

  async #repeat(
    maxWaitSeconds: number | undefined,
    signal: AbortSignal | undefined,
    next: (remaining: number | undefined) => Call,
  ): Promise<Answer> {
    const deadline = new Deadline(maxWaitSeconds);
    for (;;) {
      try {
        return await this.#transport.call(next(deadline.remaining));
      } catch (error) {
        const pause = error instanceof OutpaceError ? deadline.pause(error) : undefined;
        if (pause === undefined) {
          throw error;
        }
        await sleep(pause, signal);
      }
    }
  }
}
