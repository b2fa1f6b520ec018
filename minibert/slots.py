"""Who may use which device now: so many batches on each at once, the idlest device first.

A place belongs to the thread that took it. An interruption (Ctrl-C raises KeyboardInterrupt between
any two steps of the main thread) can keep a thread from giving its place back; the thread then has
that place at its next batch, and its own `close` does not wait for it, so that nothing ever waits
for a batch that no longer runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Longest wait without a look, in seconds: an interruption can fall between a return and its notice.
_LOOK_EVERY = 0.1


class _Place:
    """A place on one device."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Slots:
    """The places of each device, and which thread has which. Thread-safe.

    A thread has one place at a time.
    """

    def __init__(self, num_devices: int, per_device: int) -> None:
        """All places are free.

        Args:
            num_devices: numbered from 0.
            per_device: batches that one device runs at once.
        """
        self._num_devices = num_devices
        self._per_device = per_device
        self._taken: dict[int, _Place] = {}  # by thread
        self._all_taken = False
        self._lock = threading.Lock()  # `with` on it, not on the condition, cannot be interrupted
        self._changed = threading.Condition(self._lock)

    @contextmanager
    def one(self) -> Iterator[int]:
        """Hold a place, waiting for one; the value is the device that has most of them free."""
        thread = threading.get_ident()
        with self._lock:
            left = self._taken.pop(thread, None)
            number = left.number if left else self._idlest()
            while number is None:
                self._changed.wait(_LOOK_EVERY)
                number = self._idlest()
            place = self._taken[thread] = _Place(number)
        try:
            yield number
        finally:
            # The return is one step, which nothing splits. Where an interruption kept this
            # generator from ending in time, the thread has another place by now.
            if self._taken.get(thread) is place:
                del self._taken[thread]
            with self._lock:
                self._changed.notify_all()

    @contextmanager
    def all(self) -> Iterator[None]:
        """Hold every place of every device, waiting for what other threads run to end."""
        with self._lock:
            while self._all_taken:
                self._changed.wait(_LOOK_EVERY)
            self._all_taken = True
        try:
            with self._lock:
                while any(thread != threading.get_ident() for thread in list(self._taken)):
                    self._changed.wait(_LOOK_EVERY)
            yield
        finally:
            self._all_taken = False
            with self._lock:
                self._changed.notify_all()

    def _idlest(self) -> int | None:
        """The device with most places free, the first of equals: its caches are warm."""
        if self._all_taken:
            return None
        running = [0] * self._num_devices
        for place in list(self._taken.values()):
            running[place.number] += 1
        number = running.index(min(running))
        return number if running[number] < self._per_device else None
