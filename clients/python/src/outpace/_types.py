"""Values that calls take and return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Union

#: Units that some work used: of each limit with a cost, or by the names of these limits.
Cost = Union[int, Mapping[str, int]]

#: Value for the keyed limits, or one value for each part of a key with several parts.
Key = Union[str, Sequence[str]]


@dataclass(frozen=True)
class Report:
    """Effect of a report about some work."""

    #: Units that now count for the work, by the names of the limits with a cost.
    cost: Mapping[str, int]
    #: Scope that the report has blocked, in words, or None if it blocked none.
    blocked: Optional[str] = None
    #: Time for which the scope is blocked, in seconds.
    blocked_for: Optional[float] = None


@dataclass(frozen=True)
class Receipt:
    """Proof that outpace has stored an item, and will deliver it also after a crash."""

    id: str
    #: Place of the item in its buffer, which grows with each push.
    seq: int
    state: str
    #: True if an earlier push with the same idempotency key has stored the item.
    replayed: bool


@dataclass(frozen=True)
class PushItem:
    """Item for a buffer. At most one of ``body`` and ``json`` may be given."""

    #: Request body as text or bytes.
    body: Union[str, bytes, None] = None
    #: Request body as a value that is sent as JSON.
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Method instead of the buffer's method, if the buffer allows it.
    method: Optional[str] = None
    #: Path with query instead of those in the buffer's URL, if the buffer allows it.
    path: Optional[str] = None
    #: Time after the push before which the item is not sent, in seconds.
    delay: Optional[float] = None
    #: Earliest instant of sending as RFC 3339 text, instead of ``delay``.
    not_before: Optional[str] = None
    #: Instant as RFC 3339 text from which the item is not sent any more.
    expires_at: Optional[str] = None
    #: JSON value that outpace returns with the item, and does not send.
    metadata: Any = None


@dataclass(frozen=True)
class Item:
    """State of an item in a buffer. ``raw`` has all fields of the HTTP API."""

    id: str
    seq: int
    #: Such as ``queued``, ``waiting``, ``in_flight``, ``delivered`` or ``dead``.
    state: str
    buffer: Optional[str]
    attempts: int
    last_status: Optional[int]
    last_error: Optional[str]
    metadata: Any
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class BufferInfo:
    """Buffer as outpace describes it. ``raw`` has all fields of the HTTP API."""

    id: str
    name: str
    url: str
    raw: Mapping[str, Any]


def read_item(told: Mapping[str, Any]) -> Item:
    """Returns the item that an answer describes."""
    return Item(
        id=told["id"],
        seq=told["seq"],
        state=told["state"],
        buffer=told.get("buffer"),
        attempts=told["attempts"],
        last_status=told.get("last_status"),
        last_error=told.get("last_error"),
        metadata=told.get("metadata"),
        raw=told,
    )


def read_buffer(told: Mapping[str, Any]) -> BufferInfo:
    """Returns the buffer that an answer describes."""
    return BufferInfo(id=told["id"], name=told["name"], url=told["url"], raw=told)


def read_report(told: Mapping[str, Any]) -> Report:
    """Returns the effect of a report that an answer describes."""
    cost: Dict[str, int] = dict(told["cost"])
    return Report(cost=cost, blocked=told["blocked"], blocked_for=told["blocked_for"])
