"""Renewal of permits that threads hold, by one thread for each client."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from typing import Callable, List, Optional, Tuple

#: Renews a permit and returns the seconds until the next renewal, or None if there is none.
Renew = Callable[[], Optional[float]]


class Renewer:
    """Calls renewals when they are due. Its thread ends when there is none left."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._due: List[Tuple[float, int, Renew]] = []
        self._numbers = itertools.count()
        self._is_running = False

    def add(self, after: float, renew: Renew) -> None:
        """Calls ``renew`` after this time."""
        if self._process != os.getpid():
            # A fork has no copy of the thread. The permits belong to the parent.
            self._reset()
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + after, next(self._numbers), renew))
            if not self._is_running:
                threading.Thread(target=self._run, name="outpace-renewal", daemon=True).start()
                self._is_running = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            renew = self._next()
            if renew is None:
                return
            again = renew()
            if again is not None:
                self.add(again, renew)

    def _next(self) -> Optional[Renew]:
        """Waits until a renewal is due, and removes it."""
        with self._changed:
            while self._due:
                wait = self._due[0][0] - time.monotonic()
                if wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
            self._is_running = False
            return None
