"""How many cores this process may use: its affinity mask and its container's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_Reader = Callable[[Path], "float | None"]


def usable_cores() -> int:
    """Cores in the affinity mask, and no more than the control group's CPU quota, at least 1."""
    cores, quota = affinity_cores(), cgroup_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def affinity_cores() -> int:
    """Cores in the affinity mask: those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> float | None:
    """The tightest CPU quota of this process's control groups.

    Args:
        mount: where the control groups are mounted, usually /sys/fs/cgroup.
        membership: the file with this process's groups, usually /proc/self/cgroup.

    Returns:
        Cores' worth of time, such as 1.5, or None without a limit.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    quotas: list[float] = []
    for line in ["0::/", *lines]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2: one hierarchy, limits hold for all descendants
            quotas += _quotas(mount, path, _version_2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(mount / controllers, path, _version_1)
            quotas += _quotas(mount / "cpu", path, _version_1)
    return min(quotas, default=None)


def _quotas(root: Path, path: str, read: _Reader) -> list[float]:
    folder = root / path.lstrip("/")
    # Inside a container the path may be the host's and not exist here: the mount is then the group.
    folders = [folder, *folder.parents] if folder.is_relative_to(root) else [root]
    found = [read(f) for f in folders if f == root or f.is_relative_to(root)]
    return [quota for quota in found if quota is not None]


def _version_2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _version_1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 and period > 0 else None
