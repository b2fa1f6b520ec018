"""Who may use which device now: so many batches on each at once, the idlest device first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """A counter of free places for each device. Thread-safe."""

    def __init__(self, num_devices: int, per_device: int) -> None:
        """All places are free.

        Args:
            num_devices: numbered from 0.
            per_device: batches that one device runs at once.
        """
        self._free = [per_device] * num_devices
        self._per_device = per_device
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[int]:
        """Hold a place, waiting for one; the value is the device that has most of them free."""
        with self._changed:
            while not any(self._free):
                self._changed.wait()
            number = self._free.index(max(self._free))  # the first of equals: its caches are warm
            self._free[number] -= 1
        try:
            yield number
        finally:
            with self._changed:
                self._free[number] += 1
                self._changed.notify_all()

    @contextmanager
    def all(self) -> Iterator[None]:
        """Hold every place of every device, waiting for what runs to end."""
        taken = 0
        places = len(self._free) * self._per_device
        with self._changed:
            while taken < places:
                while not any(self._free):
                    self._changed.wait()
                taken += sum(self._free)
                self._free = [0] * len(self._free)
        try:
            yield
        finally:
            with self._changed:
                self._free = [self._per_device] * len(self._free)
                self._changed.notify_all()
