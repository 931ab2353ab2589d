"""Command line: ``python -m kvflow_jax COMMAND``, installed as ``kvflow-jax``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from kvflow_jax import __version__

MAX_NAME_CHARS = 64  # of an unknown command that an error message repeats


class Command(NamedTuple):
    """A command: the module whose ``main(argv)`` runs it, and what it does in one line."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("kvflow_jax.serve.__main__", "serve a model over HTTP (OpenAI, Anthropic)"),
    "cache": Command("kvflow_jax.cache_tool.__main__", "list or clear what later starts reuse"),
}

USAGE = f"""kvflow-jax {__version__}: serve LLMs to multi-agent workflows

usage: kvflow-jax COMMAND [FLAGS]          (or: python -m kvflow_jax COMMAND [FLAGS])

commands:
{{commands}}

kvflow-jax COMMAND --help lists the flags of a command. Experiments and benchmarks are part of the
checkout, not of the installed package: run python -m experiments there to list them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or list the commands; return the exit code.

    Args:
        argv: the command and its flags; None: those of the process.
    """
    name, *flags = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("", "-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(__version__)
        return 0
    if name not in COMMANDS:
        name = name[:MAX_NAME_CHARS]
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        if name.startswith("-"):
            hint = "flags follow a command, as in: kvflow-jax serve --port 9000"
        print(f"kvflow-jax: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    command = import_module(COMMANDS[name].module)
    if argv is None:
        # Commands that start their process anew (huge pages) read the flags from sys.argv.
        sys.argv = [f"kvflow-jax {name}", *sys.argv[2:]]
        return int(command.main() or 0)
    return int(command.main(flags[:-1]) or 0)


def usage() -> str:
    """Return the list of commands, one a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}   {command.summary}" for name, command in COMMANDS.items()]
    return USAGE.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
