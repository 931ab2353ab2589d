"""An argparse parser that suggests the nearest flag."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

MAX_FLAG_CHARS = 64  # of an unknown flag that an error message repeats


class ArgumentParser(argparse.ArgumentParser):
    """Parse flags; exit with code 2 and the nearest flag's name if one is unknown.

    The message leaves out the value of an unknown flag, which may be a key.
    """

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Return the flags, as argparse does."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown_argument(unknown[0]))
        return parsed

    def _unknown_argument(self, argument: str) -> str:
        """Return the error message for an argument that no flag takes."""
        flag = argument.partition("=")[0][:MAX_FLAG_CHARS]
        if not flag.isprintable() or not flag.strip("-") or not flag.startswith("-"):
            return f"unexpected argument {flag!r}; every setting is a flag, see --help"
        known = [option for action in self._actions for option in action.option_strings]
        nearest = difflib.get_close_matches(flag, known, n=1)
        return f"unknown flag {flag}; " + (
            f"did you mean {nearest[0]}?" if nearest else "see --help"
        )
