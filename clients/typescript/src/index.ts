/**
 * Client of outpace, a proxy that paces calls of APIs.
 *
 * @packageDocumentation
 */

export type {
  BufferInfo,
  BufferSpec,
  Item,
  ItemState,
  PushItem,
  PushOptions,
  Receipt,
} from "./buffers.js";
export { type AcquireOptions, Outpace, type OutpaceOptions, type Work } from "./client.js";
export {
  AccessError,
  ConflictError,
  InvalidCallError,
  NotFoundError,
  OutpaceError,
  PermitLostError,
  RefusedError,
  TemporaryError,
  UnexpectedAnswerError,
  UnreachableError,
  WaitTooLongError,
} from "./errors.js";
export type { Cost, Permit, Report, WorkReport } from "./permit.js";
