"""Memory of the emulated device: arrays with known bounds, and which of their bytes were written.

An address is `(allocation id << 36) | offset`, so that any index that leaves an array lands in
another id or beyond the end, and one comparison finds it. Plain NumPy arrays count as written;
`device_array` returns one whose bytes do not, until a kernel or the host writes them.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from minibert.errors import InputError
from minibert.kernels.emulator.types import Array

if TYPE_CHECKING:
    from minibert.kernels.emulator.global_shadow import GlobalStamps

__all__ = ["ID_SHIFT", "AddressSpace", "Allocation", "Owner", "device_address", "device_array"]

ID_SHIFT = 36
_ALIGNMENT = 256  # what allocators of device memory guarantee at least
_POISON = np.uint32(0x7FC5A5C5)  # a NaN, as float32 and as float16
_ids = itertools.count(16)


@dataclass(slots=True, eq=False)
class Owner:
    """A buffer that may have many views.

    Attributes:
        data: its bytes.
        written: 0xFF for each byte that was written, or None when all count as written.
        writers: per granule, 1 + the block that wrote it in this launch; made when needed.
        stamps: who accessed each granule last in this launch; made when needed.
    """

    data: Array
    written: Array | None = None
    writers: Array | None = None
    stamps: GlobalStamps | None = None

    def notice_host_writes(self) -> None:
        """Mark the words that the host changed since they were poisoned."""
        if self.written is None:
            return
        words = self.data[: self.data.size // 4 * 4].view(np.uint32)
        flags = self.written[: words.size * 4].view(np.uint32)
        flags[words != _POISON] = 0xFFFFFFFF
        tail = slice(words.size * 4, None)
        self.written[tail][self.data[tail] != 0xC5] = 0xFF


@dataclass(slots=True, eq=False)
class Allocation:
    """What one pointer may reach.

    Attributes:
        base: address of `window[0]`.
        window: bytes from an aligned place on; the valid ones are `window[lead:]`.
        lead: bytes before the first valid one.
        owner: the buffer behind it; `offset` is where `window` starts in it.
        label: for messages.
        writable: whether the host array may be written.
    """

    base: int
    window: Array
    lead: int
    owner: Owner
    offset: int
    label: str
    writable: bool = True
    views: dict[int, Array] = field(default_factory=dict)
    written: dict[int, Array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Valid bytes."""
        return self.window.size - self.lead

    @property
    def address(self) -> int:
        """Address of the first valid byte."""
        return self.base + self.lead

    def view(self, size: int) -> Array:
        """The window as unsigned integers of `size` bytes (16: pairs of 8)."""
        if size not in self.views:
            self.views[size] = as_units(self.window, size)
        return self.views[size]

    def written_view(self, size: int) -> Array:
        """The flags of `view(size)`."""
        if size not in self.written:
            assert self.owner.written is not None
            flags = self.owner.written[self.offset : self.offset + self.window.size]
            self.written[size] = as_units(flags, size)
        return self.written[size]


def as_units(data: Array, size: int) -> Array:
    """Bytes as (n,) unsigned integers, or (n, k) for sizes above 8 bytes."""
    whole = data[: data.size // size * size]
    if size <= 8:
        return whole.view(np.dtype(f"uint{8 * size}"))
    return whole.view(np.uint64).reshape(-1, size // 8)


@dataclass(slots=True)
class _Tracked:
    """An array of `device_array`: the buffer while it lives, its flags, its allocation id."""

    buffer: weakref.ReferenceType[Array]
    written: Array
    number: int
    complete: bool = False  # every byte was written: nothing is left to look for


_tracked: dict[int, _Tracked] = {}  # by host address


def device_array(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
    """An array of the emulated device whose bytes count as not written yet.

    A kernel that reads a byte before a kernel or the host wrote it is reported. It is a plain NumPy
    array: write it on the host as any other.

    Args:
        shape: of the array.
        dtype: of the array.
    """
    kind = np.dtype(dtype)
    room = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
    words = np.full(-(-room // 4), _POISON, np.uint32)
    start = _host_address(words)
    _tracked[start] = _Tracked(weakref.ref(words), np.zeros(room, np.uint8), next(_ids))
    weakref.finalize(words, _tracked.pop, start, None)
    array: Array = np.ndarray(shape, kind, buffer=words)
    return array


def device_address(array: Array) -> int:
    """Address of an array made by `device_array`, or of a view of it, to put into a structure.

    Raises:
        InputError: if the array was not made by `device_array`.
    """
    start = _host_address(_root(array))
    if start not in _tracked:
        raise InputError("array must come from device_array to have an address outside of a launch")
    return (_tracked[start].number << ID_SHIFT) + _host_address(array) - start


def _host_address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _root(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class AddressSpace:
    """All that one launch can reach by a global address."""

    def __init__(self) -> None:
        """Start empty; arrays of `device_array` are found by their number."""
        self.allocations: dict[int, Allocation] = {}
        self.owners: dict[int, Owner] = {}

    def add(self, array: Array, label: str) -> Allocation:
        """Make an array reachable; its view bounds are the bounds.

        Raises:
            InputError: if the array is not contiguous.
        """
        if not array.flags.c_contiguous:
            raise InputError(f"{label} must be C-contiguous to be passed as a pointer")
        root = _root(array)
        plain = root.flags.c_contiguous and root.dtype.kind in "biufcV"
        root = root if plain else array
        owner = self._owner(root)
        offset = _host_address(array) - _host_address(root)
        lead = offset % _ALIGNMENT
        start = offset - lead
        window = owner.data[start : start + lead + array.nbytes]
        writable = bool(array.flags.writeable)
        return self._add(next(_ids), window, lead, owner, start, label, writable=writable)

    def find(self, address: int) -> Allocation | None:
        """The allocation whose id the address carries."""
        number = address >> ID_SHIFT
        if number in self.allocations:
            return self.allocations[number]
        for tracked in list(_tracked.values()):
            buffer = tracked.buffer() if tracked.number == number else None
            if buffer is not None:
                owner = self._owner(buffer)
                return self._add(number, owner.data, 0, owner, 0, "a device array", writable=True)
        return None

    def _owner(self, root: Array) -> Owner:
        start = _host_address(root)
        if start not in self.owners:
            owner = Owner(root.reshape(-1).view(np.uint8))
            tracked = _tracked.get(start)
            if tracked is not None:
                owner.data = owner.data[: tracked.written.size]
                if not tracked.complete:
                    owner.written = tracked.written
                    owner.notice_host_writes()
                    tracked.complete = bool(tracked.written.all())
            self.owners[start] = owner
        return self.owners[start]

    def _add(
        self,
        number: int,
        window: Array,
        lead: int,
        owner: Owner,
        offset: int,
        label: str,
        *,
        writable: bool,
    ) -> Allocation:
        made = Allocation(number << ID_SHIFT, window, lead, owner, offset, label, writable)
        self.allocations[number] = made
        return made
