"""Errors of the client. Each refusal of outpace keeps its reason as a word."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Type


class OutpaceError(Exception):
    """Base of all errors that this package raises."""


class UnreachableError(OutpaceError):
    """outpace could not be reached, or the connection ended before its answer."""


class UnexpectedAnswerError(OutpaceError):
    """The answer is not one of outpace, so the URL probably belongs to another server."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"unexpected answer with status {status}: {text[:200]!r}")
        self.status = status


class PermitLostError(OutpaceError):
    """outpace does not know the permit: it was not renewed in time, or outpace has restarted."""


class RefusedError(OutpaceError):
    """outpace refused the call. ``reason`` is one of the words in outpace's table of reasons."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.reason: str = str(problem["reason"])
        self.detail: str = str(problem.get("detail", ""))
        self.remedy: Optional[str] = problem.get("remedy")
        self.target: Optional[str] = problem.get("target")
        self.limit: Optional[str] = problem.get("limit")
        #: Time in seconds after which a repetition may succeed, or None if it is unknown.
        self.retry_after: Optional[float] = problem.get("retry_after")
        #: Id of the exchange, which the log of outpace names, too.
        self.exchange: Optional[str] = problem.get("exchange")
        super().__init__(f"{self.reason}: {self.detail}")


class TemporaryError(RefusedError):
    """The same call may succeed later, such as when a queue or a share is full."""


class WaitTooLongError(TemporaryError):
    """The turn would come after the longest wait (``wait-too-long``)."""


class AccessError(RefusedError):
    """The client's token is missing or wrong, or the client lacks a permission."""


class NotFoundError(RefusedError):
    """The target, buffer or item does not exist, or outpace runs without a spool."""


class ConflictError(RefusedError):
    """The call contradicts an earlier one, such as a reused idempotency key."""


class InvalidCallError(RefusedError):
    """A value of the call is invalid, such as an unknown lane."""


#: Reasons whose class the status code does not tell.
_BY_REASON: Mapping[str, Type[RefusedError]] = {
    "wait-too-long": WaitTooLongError,
    "idempotency-key-reused": ConflictError,
    "spool-full": TemporaryError,
    "spool-share-full": TemporaryError,
}

_BY_STATUS: Mapping[int, Type[RefusedError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    407: AccessError,
    409: ConflictError,
    410: NotFoundError,
    429: TemporaryError,
    503: TemporaryError,
}


def refusal(status: int, problem: Mapping[str, Any]) -> RefusedError:
    """Returns the error for a refusal of outpace."""
    default = InvalidCallError if status < 500 else RefusedError
    kind = _BY_REASON.get(str(problem["reason"]), _BY_STATUS.get(status, default))
    return kind(status, problem)
