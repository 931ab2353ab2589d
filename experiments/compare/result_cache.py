"""Checkpoint of an experiment's results, so that an interrupted experiment can resume."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


class ResultCacheError(ValueError):
    """Results cannot be written, or those on disk belong to another experiment."""


class ResultCache:
    """Results by name, appended to ``path`` + ``.partial`` as they arrive.

    Args:
        path: final output file of the experiment; None to keep results in memory only.
        asked: options of the experiment. Results of other options, or of other code, are refused.

    Raises:
        ResultCacheError: the file has such results, or cannot be written.
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
                    f"{self._path} has results of other options, or of other code: remove it, or "
                    "name another --json"
                )
            for line in lines[1:]:
                try:
                    name, result = json.loads(line)
                except ValueError:  # truncated when the process ended
                    break
                self.results[name] = result
            # Rewrite the file: new results must not follow a truncated line.
            kept = [header, *(json.dumps([name, one]) for name, one in self.results.items())]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()  # fails now, not after hours
            if not path.stat().st_size:
                path.unlink()
            self._path.write_text("".join(line + "\n" for line in kept))
        except OSError as error:
            raise ResultCacheError(
                f"results cannot be written to {path}: {error.strerror}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return name in self.results

    def put(self, name: str, result: Any) -> None:
        """Store a result. Reading it returns its JSON round trip."""
        line = json.dumps([name, result])
        self.results[name] = json.loads(line)[1]
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """Delete the checkpoint, once the experiment has written its output file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@cache
def code_version() -> str:
    """Return a hash of all code that results may depend on."""
    digest = hashlib.sha256()
    for room in ("cache", "experiments", "kvflow_jax", "models"):
        for file in sorted((_ROOT / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def content_version(path: Path) -> str:
    """Return a hash of an input file, or of the names and contents of a folder's files."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file():
            digest.update(f"{file.name} {content_version(file)} ".encode())
    return digest.hexdigest()[:16]
