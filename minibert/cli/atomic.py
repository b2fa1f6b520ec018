"""A file that is either whole under its name or not there at all."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from minibert.errors import InputError


class AtomicFile:
    """A context manager that yields a new binary file and names it when the block has succeeded.

    The bytes go to `.<name>.<random>.partial` in the same folder, are synced to the disk, and take
    the final name in one step. When the block raises, the partial file is removed; a process that
    is killed outright leaves the partial file, never a file under the final name.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Check that the name can be taken; nothing is created yet.

        Args:
            path: the final name; a link is followed.
            overwrite: whether an existing file may be replaced.

        Raises:
            InputError: where the name is taken, or the folder is missing or not writable.
        """
        self.path = Path(os.path.realpath(path))
        self.overwrite = overwrite
        self._mode: int | None = None
        self._check(path)
        stem = self.path.name[:40]  # a name may have 255 bytes, and this one must fit too
        self._partial = self.path.with_name(f".{stem}.{secrets.token_hex(4)}.partial")
        self._file: BinaryIO | None = None

    def _check(self, path: Path) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            raise InputError(f"output must lie in an existing folder, got '{path}'")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"output must lie in a writable folder, got '{path}'")
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        if not stat.S_ISREG(mode):
            raise InputError(f"output must be a regular file, got '{path}'")
        if not self.overwrite:
            raise self._taken()
        self._mode = stat.S_IMODE(mode)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"output must be a file that can be written, got '{self.path}': {error.strerror}"
        )

    def _taken(self) -> InputError:
        return InputError(
            f"output must not exist yet, got '{self.path}'; --overwrite replaces the file"
        )

    def __enter__(self) -> BinaryIO:
        """Create the partial file."""
        try:
            descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        self._file = cast(BinaryIO, os.fdopen(descriptor, "w+b"))
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it."""
        try:
            if kind is None:
                assert self._file is not None
                self._commit(self._file)
        finally:
            with suppress(OSError):
                if self._file is not None:
                    self._file.close()
            self._partial.unlink(missing_ok=True)

    def _commit(self, file: BinaryIO) -> None:
        file.flush()
        if self._mode is not None:
            os.fchmod(file.fileno(), self._mode)
        os.fsync(file.fileno())
        if self.overwrite:
            os.replace(self._partial, self.path)
        else:
            self._claim()
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _claim(self) -> None:
        """Take the name only if it is still free: a link fails where another run was faster."""
        try:
            os.link(self._partial, self.path)
        except FileExistsError as error:
            raise self._taken() from error
        except OSError as error:  # a file system without hard links
            if self.path.exists():
                raise self._taken() from error
            os.replace(self._partial, self.path)
