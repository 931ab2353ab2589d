"""Child processes that print their figures as they measure them, a line of JSON each."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvflow_jax.errors import KVFlowError

ROOT = Path(__file__).parents[1]  # of the checkout, where children start
MAX_REASON_CHARS = 300


class ChildError(KVFlowError):
    """A child process failed; the message is the reason.

    Attributes:
        figures: those that it printed before.
    """

    def __init__(self, reason: str, figures: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.figures = figures


def run_child(command: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None) -> Any:
    """Run a command in the root of the checkout; return the objects that it prints, merged.

    Args:
        limit_s: time after which it is ended.
        env: its environment; None: that of this process.

    Raises:
        ChildError: the command failed, or did not end in time.
    """
    figures: dict[str, Any] = {}
    was_late = threading.Event()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):

        def end() -> None:
            was_late.set()
            process.kill()

        limit = threading.Timer(limit_s, end)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                # What libraries print goes to the same stream.
                if line.startswith("{"):
                    figures |= json.loads(line)
            process.wait()
        finally:
            limit.cancel()
        if was_late.is_set():
            raise ChildError(f"it took longer than {limit_s:.0f} s", figures)
        if process.returncode:
            errors.seek(0)
            raise ChildError(reason_of(process.returncode, errors.read()), figures)
    return figures


def reason_of(status: int, errors: str) -> str:
    """Return why a process ended, the last line of its errors, from its exit status."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = (lines or ["it printed no error"])[-1][:MAX_REASON_CHARS]
    return last if status > 0 else f"ended by signal {-status}: {last}"
