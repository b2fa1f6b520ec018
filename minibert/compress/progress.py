"""Measurements of a long run, kept on the disk so that a run that was stopped can go on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path


class Journal:
    """Numbers by name in a JSON file beside the output; removed when the work is done.

    A file that belongs to another model, other texts or other options is ignored and replaced.
    """

    def __init__(self, path: Path, identity: str) -> None:
        """Read what an earlier run of the same work left.

        Args:
            path: the file.
            identity: of the work, from `identity_of`.
        """
        self.path = path
        self._identity = identity
        self._values: dict[str, float] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["identity"] == identity:
                self._values = {str(k): float(v) for k, v in found["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass

    def __len__(self) -> int:
        """How many numbers are known."""
        return len(self._values)

    def value(self, name: str, measure: Callable[[], float]) -> float:
        """The number of that name; measured, and written down, where it is not known yet."""
        if name not in self._values:
            self._values[name] = float(measure())
            partial = self.path.with_name(self.path.name + ".partial")
            text = json.dumps({"identity": self._identity, "values": self._values})
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path)
        return self._values[name]

    def remove(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)


def identity_of(files: Sequence[Path], texts: Sequence[str], options: str) -> str:
    """A digest of the model's files (name, size, time), the texts and the options."""
    digest = hashlib.sha256(options.encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
