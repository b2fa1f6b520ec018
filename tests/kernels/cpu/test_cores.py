"""Cores that a process may use: affinity, and quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

from minibert.kernels.cpu import cores


def test_cores_respect_the_affinity_mask() -> None:
    assert 1 <= cores.usable_cores() <= len(os.sched_getaffinity(0))


def test_cgroup_quota_is_the_tightest_of_the_hierarchy(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    mount = tmp_path / "mount"
    (mount / "outer" / "inner").mkdir(parents=True)
    assert cores.cgroup_quota(mount, membership) is None
    (mount / "outer" / "cpu.max").write_text("150000 100000\n")
    (mount / "outer" / "inner" / "cpu.max").write_text("max 100000\n")
    assert cores.cgroup_quota(mount, membership) == 1.5
    (mount / "cpu.max").write_text("50000 100000\n")
    assert cores.cgroup_quota(mount, membership) == 0.5


def test_cgroup_version_1(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    folder = tmp_path / "cpu,cpuacct"
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores.cgroup_quota(tmp_path, membership) is None
    (folder / "cpu.cfs_quota_us").write_text("200000\n")
    assert cores.cgroup_quota(tmp_path, membership) == 2.0
