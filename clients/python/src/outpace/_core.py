"""Parts of both clients that do no input and output: calls, answers, and the time to wait."""

from __future__ import annotations

import base64
import json
import os
import uuid
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Union
from urllib.parse import quote, urlsplit

from ._errors import OutpaceError, TemporaryError, UnexpectedAnswerError, UnreachableError, refusal
from ._types import Cost, Key, PushItem, Receipt
from ._version import __version__

#: URL of an outpace with the default configuration on this machine.
DEFAULT_URL = "http://127.0.0.1:8080"
#: Seconds for which outpace keeps a permit without a renewal. The client renews it after a third.
DEFAULT_HOLD = 30.0
#: Seconds for a connection, and for an answer that no limit delays.
DEFAULT_TIMEOUT = 10.0
#: Seconds after which an idle connection is not used again. outpace closes it after 60 seconds.
IDLE_MAX = 30.0
#: Shortest and longest pause in seconds before a call is repeated.
PAUSE_MIN = 0.1
PAUSE_MAX = 5.0


@dataclass(frozen=True)
class Endpoint:
    """Address of outpace, and the header fields of every call."""

    is_tls: bool
    host: str
    port: int
    prefix: str
    fields: Mapping[str, str]

    @staticmethod
    def of(url: Optional[str], token: Optional[str]) -> Endpoint:
        """Reads the URL and the token, or the variables that stand for them."""
        url = url or os.environ.get("OUTPACE_URL") or DEFAULT_URL
        token = token or os.environ.get("OUTPACE_CLIENT_TOKEN")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL of outpace is {url!r}; write it as {DEFAULT_URL!r}")
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        named = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        fields = {
            "Host": f"{named}:{port}",
            "User-Agent": f"outpace-python/{__version__}",
            "Accept": "application/json",
        }
        if token:
            if ":" not in token:
                raise ValueError("the token of a client has the form NAME:TOKEN")
            fields["Outpace-Client-Token"] = token
        return Endpoint(is_tls, parts.hostname, port, parts.path.rstrip("/"), fields)


@dataclass(frozen=True)
class Call:
    """One call of the HTTP API."""

    method: str
    path: str
    body: Optional[bytes] = None
    idempotency_key: Optional[str] = None

    def fields(self, endpoint: Endpoint) -> Dict[str, str]:
        """Returns the header fields of the call."""
        fields = dict(endpoint.fields)
        if self.body is not None:
            fields["Content-Type"] = "application/json"
            fields["Content-Length"] = str(len(self.body))
        if self.idempotency_key is not None:
            fields["Idempotency-Key"] = self.idempotency_key
        return fields


def post(path: str, value: Any, idempotency_key: Optional[str] = None) -> Call:
    """Returns a call with a JSON body."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Call("POST", path, body, idempotency_key)


def target_path(target: str, verb: str) -> str:
    """Returns the path of a call about a target."""
    return f"/v1/targets/{quote(target, safe='')}/{verb}"


def buffer_path(buffer: str, verb: str) -> str:
    """Returns the path of a call about a buffer."""
    return f"/v1/buffers/{quote(buffer, safe='')}/{verb}"


def item_path(item: str) -> str:
    """Returns the path of an item."""
    return f"/v1/items/{quote(item, safe='')}"


@dataclass(frozen=True)
class Answer:
    """Answer to a call that succeeded."""

    status: int
    told: Mapping[str, Any]


def read_answer(status: int, body: bytes) -> Answer:
    """Returns the answer, or raises the error that it describes."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise UnexpectedAnswerError(status, body.decode("utf-8", "replace"))
    if 200 <= status < 300:
        return Answer(status, told)
    if "reason" not in told:
        raise UnexpectedAnswerError(status, body.decode("utf-8", "replace"))
    raise refusal(status, told)


@dataclass(frozen=True)
class WorkSpec:
    """Work that asks for a turn. Fields that are None have the defaults of outpace."""

    target: str
    lane: Optional[str]
    cost: Optional[int]
    key: Optional[Key]
    max_wait: Optional[float]
    hold: float

    def call(self, max_wait: Optional[float]) -> Call:
        """Returns the call that waits for a turn for up to ``max_wait`` seconds."""
        key = self.key if self.key is None or isinstance(self.key, str) else list(self.key)
        asked = {"lane": self.lane, "cost": self.cost, "key": key, "max_wait": max_wait}
        body = {name: value for name, value in asked.items() if value is not None}
        body["hold"] = self.hold
        return post(target_path(self.target, "acquire"), body)


def report_body(
    permit: str, cost: Optional[Cost], limited: bool, retry_after: Optional[float]
) -> Dict[str, Any]:
    """Returns the body of a report."""
    body: Dict[str, Any] = {"permit": permit}
    if cost is not None:
        body["cost"] = cost if isinstance(cost, int) else dict(cost)
    if limited:
        body["limited"] = True
    if retry_after is not None:
        body["retry_after"] = retry_after
    return body


class Deadline:
    """Decides if a call that failed is repeated, and after which pause."""

    def __init__(self, max_wait: Optional[float], now: float) -> None:
        if max_wait is not None and not max_wait >= 0:
            raise ValueError(f"`max_wait` is a number of seconds from 0, and not {max_wait}")
        self._ends = None if max_wait is None else now + max_wait
        self._pause = PAUSE_MIN

    def remaining(self, now: float) -> Optional[float]:
        """Returns the seconds that are left, or None if outpace alone decides on the wait."""
        return None if self._ends is None else max(self._ends - now, 0.0)

    def pause(self, error: OutpaceError, now: float) -> Optional[float]:
        """Returns the seconds to wait before the next call, or None if the error is final."""
        remaining = self.remaining(now)
        told = None
        if isinstance(error, TemporaryError):
            told = error.retry_after
        elif not isinstance(error, UnreachableError):
            return None
        pause = self._pause if told is None else max(told, PAUSE_MIN)
        if remaining is None or pause > remaining:
            return None
        self._pause = min(self._pause * 2, PAUSE_MAX)
        return pause


def item_body(item: PushItem) -> Dict[str, Any]:
    """Returns the JSON object that stands for an item."""
    if item.body is not None and item.json is not None:
        raise ValueError("an item has either a `body` or a `json`")
    body: Dict[str, Any] = {}
    if isinstance(item.body, bytes):
        body["body_base64"] = base64.b64encode(item.body).decode("ascii")
    elif item.body is not None:
        body["body"] = item.body
    if item.headers:
        body["headers"] = dict(item.headers)
    for name in ("json", "method", "path", "delay", "not_before", "expires_at", "metadata"):
        value = getattr(item, name)
        if value is not None:
            body[name] = value
    return body


def push_call(buffer: str, item: PushItem, idempotency_key: Optional[str]) -> Call:
    """Returns the call that pushes an item. Its key makes a repetition harmless."""
    key = idempotency_key or str(uuid.uuid4())
    return post(buffer_path(buffer, "items"), item_body(item), key)


def batch_call(buffer: str, items: Sequence[PushItem], idempotency_key: Optional[str]) -> Call:
    """Returns the call that pushes several items, all or none."""
    key = idempotency_key or str(uuid.uuid4())
    return post(buffer_path(buffer, "batch"), [item_body(item) for item in items], key)


def read_receipt(answer: Answer) -> Receipt:
    """Returns the receipt for one pushed item."""
    told = answer.told
    return Receipt(told["id"], told["seq"], told["state"], answer.status == 200)


def read_receipts(answer: Answer) -> Sequence[Receipt]:
    """Returns the receipts for a batch."""
    replayed = bool(answer.told["replayed"])
    items = answer.told["items"]
    return [Receipt(item["id"], item["seq"], item["state"], replayed) for item in items]


def push_item(
    body: Union[PushItem, str, bytes, None], json: Any, fields: Mapping[str, Any]
) -> PushItem:
    """Returns the item that the arguments of a push describe."""
    if isinstance(body, PushItem):
        if json is not None or fields:
            raise ValueError("a PushItem has all fields itself; leave the other arguments out")
        return body
    return PushItem(body=body, json=json, **fields)
