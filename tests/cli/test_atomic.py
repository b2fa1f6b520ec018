from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from minibert.cli.atomic import AtomicFile
from minibert.errors import InputError


def test_the_name_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with AtomicFile(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["out.npy"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing(tmp_path: Path, overwrite: bool) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        AtomicFile(tmp_path / "out.npy", overwrite=overwrite) as file,
    ):
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="bad"), AtomicFile(path, overwrite=True) as file:
        file.write(b"half")
        raise ValueError("bad")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.npy"]


def test_a_taken_name_is_refused_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="--overwrite"):
        AtomicFile(path)


def test_a_name_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with pytest.raises(InputError, match="--overwrite"), AtomicFile(path) as file:
        file.write(b"late")
        path.write_bytes(b"faster")
    assert path.read_bytes() == b"faster"
    assert os.listdir(tmp_path) == ["out.npy"]


def test_overwriting_keeps_the_mode_and_follows_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "out.npy", tmp_path / "link.npy"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with AtomicFile(link, overwrite=True) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with AtomicFile(tmp_path / "out.npy"):
        pass
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120])
def test_a_long_name_is_taken(tmp_path: Path, name: str) -> None:
    with AtomicFile(tmp_path / name) as file:
        file.write(b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        AtomicFile(tmp_path / ("x" * 300))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing folder"):
        AtomicFile(tmp_path / "none" / "out.npy")


def test_a_folder_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="writable folder"):
        AtomicFile(tmp_path / "out.npy")


@pytest.mark.parametrize("name", ["/dev/null", "."])
def test_only_a_regular_file_is_replaced(name: str) -> None:
    with pytest.raises(InputError, match="regular file"):
        AtomicFile(Path(name), overwrite=True)
