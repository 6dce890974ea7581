"""Client of outpace, a proxy that paces calls of APIs.

``Outpace`` is for threads, ``AsyncOutpace`` is for asyncio. All times are in seconds.
"""

from ._async import AsyncOutpace, AsyncPermit
from ._errors import (
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
)
from ._sync import Outpace, Permit
from ._types import BufferInfo, Cost, Item, Key, PushItem, Receipt, Report
from ._version import __version__

__all__ = [
    "AccessError",
    "AsyncOutpace",
    "AsyncPermit",
    "BufferInfo",
    "ConflictError",
    "Cost",
    "InvalidCallError",
    "Item",
    "Key",
    "NotFoundError",
    "Outpace",
    "OutpaceError",
    "Permit",
    "PermitLostError",
    "PushItem",
    "Receipt",
    "RefusedError",
    "Report",
    "TemporaryError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "WaitTooLongError",
    "__version__",
]
