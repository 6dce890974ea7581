import { type OutpaceError, TemporaryError, UnreachableError } from "./errors.js";

/** Shortest and longest pause in seconds before a call is repeated. */
const PAUSE_MIN = 0.1;
const PAUSE_MAX = 5;

/** Returns the seconds of a clock that is never set back. */
export function now(): number {
  return performance.now() / 1000;
}

/** Decides if a call that failed is repeated, and after which pause. */
export class Deadline {
  readonly #ends: number | undefined;
  #pause = PAUSE_MIN;

  constructor(maxWaitSeconds: number | undefined) {
    if (maxWaitSeconds !== undefined && !(maxWaitSeconds >= 0)) {
      throw new RangeError(`the longest wait is a number from 0, and not ${maxWaitSeconds}`);
    }
    this.#ends = maxWaitSeconds === undefined ? undefined : now() + maxWaitSeconds;
  }

  /** Seconds that are left, or undefined if outpace alone decides on the wait. */
  get remaining(): number | undefined {
    return this.#ends === undefined ? undefined : Math.max(this.#ends - now(), 0);
  }

  /** Returns the seconds to wait before the next call, or undefined if the error is final. */
  pause(error: OutpaceError): number | undefined {
    let told: number | undefined;
    if (error instanceof TemporaryError) {
      told = error.retryAfterSeconds;
    } else if (!(error instanceof UnreachableError)) {
      return undefined;
    }
    const remaining = this.remaining;
    const pause = told === undefined ? this.#pause : Math.max(told, PAUSE_MIN);
    if (remaining === undefined || pause > remaining) {
      return undefined;
    }
    this.#pause = Math.min(this.#pause * 2, PAUSE_MAX);
    return pause;
  }
}

/** Waits for this time. The promise rejects with the reason of the signal if that is aborted. */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) {
      abort();
    } else {
      signal?.addEventListener("abort", abort, { once: true });
    }
  });
}
