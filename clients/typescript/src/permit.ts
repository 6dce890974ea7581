/// <reference lib="esnext.disposable" preserve="true" />

import { now } from "./deadline.js";
import { NotFoundError, OutpaceError, PermitLostError, UnreachableError } from "./errors.js";
import type { Answer, Transport } from "./transport.js";

/** Units that some work used: of each limit with a cost, or by the names of these limits. */
export type Cost = number | Readonly<Record<string, number>>;

/** Content of a report about some work. */
export interface WorkReport {
  cost?: Cost | undefined;
  /** True if the origin refused the work because of a limit. */
  limited?: boolean | undefined;
  /** Wait that the origin asked for. It needs `limited`. */
  retryAfterSeconds?: number | undefined;
}

/** Effect of a report about some work. */
export interface Report {
  /** Units that now count for the work, by the names of the limits with a cost. */
  cost: Readonly<Record<string, number>>;
  /** Scope that the report has blocked, in words, or null if it blocked none. */
  blocked: string | null;
  blockedForSeconds: number | null;
}

/** Right to do some work now. It is renewed until it is released. */
export class Permit {
  /** Name of the target. */
  readonly target: string;
  /** Id of the permit, or null if outpace keeps too much other work for its reports. */
  readonly id: string | null;
  /** Time for which outpace let the work wait. */
  readonly waitedSeconds: number;
  readonly #transport: Transport;
  readonly #hold: number;
  readonly #lost = new AbortController();
  #isOver: boolean;
  #expires: number;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @internal */
  constructor(transport: Transport, target: string, { told }: Answer) {
    this.#transport = transport;
    // outpace cuts a hold time that is longer than an hour.
    this.#hold = (told["expires_in"] as number | null) ?? 0;
    this.#expires = now() + this.#hold;
    this.target = target;
    this.id = told["permit"] as string | null;
    this.waitedSeconds = told["waited"] as number;
    this.#isOver = this.id === null;
    if (!this.#isOver) {
      this.#renewAfter(this.#hold / 3);
    }
  }

  /** True if the permit ended before its work, so other work may run at the same time. */
  get lost(): boolean {
    return this.#lost.signal.aborted;
  }

  /** Signal that is aborted with a `PermitLostError` if the permit ends before its work. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  #renewAfter(seconds: number): void {
    this.#timer = setTimeout(() => void this.#renew(), seconds * 1000);
    // Renewals alone are no reason for a process to stay. Browsers have numbers for timers.
    (this.#timer as { unref?: () => void }).unref?.();
  }

  async #renew(): Promise<void> {
    const asked = now();
    try {
      await this.#call("renew", { permit: this.id, hold: this.#hold });
      this.#expires = asked + this.#hold;
      if (!this.#isOver) {
        this.#renewAfter(this.#hold / 3);
      }
    } catch (error) {
      const left = this.#expires - now();
      if (this.#isOver) {
        // A renewal that a release overtakes finds no permit either.
      } else if (error instanceof NotFoundError || left <= 0) {
        this.#lose(error);
      } else {
        this.#renewAfter(Math.min(this.#hold / 10, left));
      }
    }
  }

  #lose(cause: unknown): void {
    const told = "the permit ended before its work, so other work may run at the same time";
    this.#lost.abort(new PermitLostError(told, { cause }));
  }

  #call(verb: string, body: Record<string, unknown>): Promise<Answer> {
    const path = `/v1/targets/${encodeURIComponent(this.target)}/${verb}`;
    return this.#transport.call({ method: "POST", path, body, wait: 0 });
  }

  /**
   * Reports the cost of the work, or that its origin refused it because of a limit.
   *
   * Throws a `PermitLostError` if outpace does not know the work any more.
   */
  async report(report: WorkReport): Promise<Report> {
    if (this.id === null) {
      const told = "outpace keeps too much other work to take a report about this";
      throw new PermitLostError(told);
    }
    const { cost, limited, retryAfterSeconds } = report;
    const body = { permit: this.id, cost, limited, retry_after: retryAfterSeconds };
    try {
      const { told } = await this.#call("report", body);
      return {
        cost: told["cost"] as Record<string, number>,
        blocked: told["blocked"] as string | null,
        blockedForSeconds: told["blocked_for"] as number | null,
      };
    } catch (error) {
      if (error instanceof NotFoundError) {
        throw new PermitLostError(error.detail, { cause: error });
      }
      throw error;
    }
  }

  /**
   * Replaces the estimated cost by the units that the work has used.
   *
   * The result is undefined if the report does not reach outpace, because the work is done anyway.
   */
  settle(cost: Cost): Promise<Report | undefined> {
    return this.#tryReport({ cost });
  }

  /**
   * Reports that the origin refused the work, so that other work waits as well.
   *
   * The result is undefined if the report does not reach outpace.
   */
  limited(retryAfterSeconds?: number): Promise<Report | undefined> {
    return this.#tryReport({ limited: true, retryAfterSeconds });
  }

  async #tryReport(report: WorkReport): Promise<Report | undefined> {
    try {
      return await this.report(report);
    } catch (error) {
      if (error instanceof PermitLostError || error instanceof UnreachableError) {
        return undefined;
      }
      throw error;
    }
  }

  /**
   * Returns the permit. A second call does nothing.
   *
   * If outpace cannot be reached, the permit ends with its hold time.
   */
  async release(): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#isOver) {
      return;
    }
    this.#isOver = true;
    try {
      await this.#call("release", { permit: this.id });
    } catch (error) {
      if (error instanceof NotFoundError) {
        this.#lose(error);
      } else if (!(error instanceof OutpaceError)) {
        throw error;
      }
    }
  }

  /** Returns the permit at the end of an `await using` declaration. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }
}
