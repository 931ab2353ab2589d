"""Results as they come, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


class ResultCacheError(ValueError):
    """Results cannot be kept, or what is there is of another experiment."""


class ResultCache:
    """Keeps results by name, in a file beside the one that is written at the end.

    Args:
        path: where the experiment will write; None: nothing is kept.
        asked: what was asked for. Results of another question, or of other code, are not taken up.

    Raises:
        ResultCacheError: there are such results, or the file cannot be written.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.results: dict[str, Any] = {}
        self._path = None if path is None else path.with_name(path.name + ".partial")
        if path is None or self._path is None:
            return
        header = json.dumps({"asked": asked, "code": code_version()}, sort_keys=True)
        try:
            lines = self._path.read_bytes().splitlines() if self._path.exists() else []
            if lines and lines[0] != header.encode():
                raise ResultCacheError(
                    f"{self._path} has results of other options, or of other code: move it away, "
                    "or name another --json"
                )
            for line in lines[1:]:
                try:
                    name, result = json.loads(line)
                except ValueError:  # cut off where the process ended
                    break
                self.results[name] = result
            # Written anew: what was cut off must not stand before what comes.
            whole = [header, *(json.dumps([name, one]) for name, one in self.results.items())]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()  # noticed now, not when all is done
            if not path.stat().st_size:
                path.unlink()
            self._path.write_text("".join(line + "\n" for line in whole))
        except OSError as error:
            raise ResultCacheError(
                f"results cannot be written to {path}: {error.strerror}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self.results

    def put(self, name: str, result: Any) -> None:
        """Keep a result; what is read back is what JSON makes of it."""
        line = json.dumps([name, result])
        self.results[name] = json.loads(line)[1]
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """The experiment has ended and written its file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@cache
def code_version() -> str:
    """A hash of all code that results may depend on."""
    digest = hashlib.sha256()
    for room in ("cache", "experiments", "kvflow_jax", "models"):
        for file in sorted((_ROOT / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def content_version(path: Path) -> str:
    """A hash of a file that is read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
