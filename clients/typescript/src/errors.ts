/** Members of the problem details (RFC 9457) with which outpace refuses a call. */
export interface Problem {
  reason: string;
  detail?: string;
  remedy?: string;
  target?: string;
  limit?: string;
  retry_after?: number;
  exchange?: string;
}

/** Base of all errors that this package throws. */
export class OutpaceError extends Error {
  override name = "OutpaceError";
}

/** outpace could not be reached, or the connection ended before its answer. */
export class UnreachableError extends OutpaceError {
  override name = "UnreachableError";
}

/** The answer is not one of outpace, so the URL probably belongs to another server. */
export class UnexpectedAnswerError extends OutpaceError {
  override name = "UnexpectedAnswerError";
  readonly status: number;

  constructor(status: number, text: string) {
    super(`unexpected answer with status ${status}: ${JSON.stringify(text.slice(0, 200))}`);
    this.status = status;
  }
}

/** outpace does not know the permit: it was not renewed in time, or outpace has restarted. */
export class PermitLostError extends OutpaceError {
  override name = "PermitLostError";
}

/** outpace refused the call. `reason` is one of the words in outpace's table of reasons. */
export class RefusedError extends OutpaceError {
  override name = "RefusedError";
  readonly status: number;
  readonly reason: string;
  readonly detail: string;
  readonly remedy: string | undefined;
  readonly target: string | undefined;
  readonly limit: string | undefined;
  /** Time after which a repetition may succeed, or undefined if it is unknown. */
  readonly retryAfterSeconds: number | undefined;
  /** Id of the exchange, which the log of outpace names, too. */
  readonly exchange: string | undefined;

  constructor(status: number, problem: Problem) {
    super(`${problem.reason}: ${problem.detail ?? ""}`);
    this.status = status;
    this.reason = problem.reason;
    this.detail = problem.detail ?? "";
    this.remedy = problem.remedy;
    this.target = problem.target;
    this.limit = problem.limit;
    this.retryAfterSeconds = problem.retry_after;
    this.exchange = problem.exchange;
  }
}

/** The same call may succeed later, such as when a queue or a share is full. */
export class TemporaryError extends RefusedError {
  override name = "TemporaryError";
}

/** The turn would come after the longest wait (`wait-too-long`). */
export class WaitTooLongError extends TemporaryError {
  override name = "WaitTooLongError";
}

/** The client's token is missing or wrong, or the client lacks a permission. */
export class AccessError extends RefusedError {
  override name = "AccessError";
}

/** The target, buffer or item does not exist, or outpace runs without a spool. */
export class NotFoundError extends RefusedError {
  override name = "NotFoundError";
}

/** The call contradicts an earlier one, such as a reused idempotency key. */
export class ConflictError extends RefusedError {
  override name = "ConflictError";
}

/** A value of the call is invalid, such as an unknown lane. */
export class InvalidCallError extends RefusedError {
  override name = "InvalidCallError";
}

type Kind = new (status: number, problem: Problem) => RefusedError;

/** Reasons whose class the status code does not tell. */
const BY_REASON: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  ["wait-too-long", WaitTooLongError],
  ["idempotency-key-reused", ConflictError],
  ["spool-full", TemporaryError],
  ["spool-share-full", TemporaryError],
]);

const BY_STATUS: ReadonlyMap<number, Kind> = new Map<number, Kind>([
  [401, AccessError],
  [403, AccessError],
  [404, NotFoundError],
  [407, AccessError],
  [409, ConflictError],
  [410, NotFoundError],
  [429, TemporaryError],
  [503, TemporaryError],
]);

/** Returns the error for a refusal of outpace. */
export function refusal(status: number, problem: Problem): RefusedError {
  const fallback: Kind = status < 500 ? InvalidCallError : RefusedError;
  const kind = BY_REASON.get(problem.reason) ?? BY_STATUS.get(status) ?? fallback;
  return new kind(status, problem);
}
