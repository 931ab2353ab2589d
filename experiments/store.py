"""Results as they come, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Store:
    """Keeps results by name, in a file beside the one that is written at the end.

    Args:
        path: where the experiment will write; None: nothing is kept.
        asked: what was asked for; results of another question are not taken up.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.results: dict[str, Any] = {}
        self._path = None if path is None else path.with_name(path.name + ".partial")
        if self._path is None:
            return
        header = json.dumps({"asked": asked}, sort_keys=True)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        if lines and lines[0] == header:
            for line in lines[1:]:
                try:
                    name, result = json.loads(line)
                except ValueError:  # cut off where the process ended
                    break
                self.results[name] = result
        # Written anew: what was cut off must not stand before what comes.
        whole = [header, *(json.dumps([name, one]) for name, one in self.results.items())]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(line + "\n" for line in whole))

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
