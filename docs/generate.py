"""Generate the pages of the documentation that the code writes.

python -m docs.generate            # write docs/flags.md
python -m docs.generate --check    # fail if it is out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvflow_jax.serve.command_line import make_parser

PAGE = Path(__file__).with_name("flags.md")


def flags_page() -> str:
    """Return the page of the server's flags, by group, as Markdown."""
    lines = [
        "# Flags of the server",
        "",
        "`python -m kvflow_jax.serve --help` prints the same; the code generates this page. "
        "`LLM` takes the settings of Model, Engine and Cache as arguments: `--max-num-seqs 8` is "
        "`max_num_seqs=8`. They are the fields of `LoadConfig`, `EngineConfig` and `CacheConfig`, "
        "where each is defined.",
    ]
    for group in make_parser()._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if not actions:
            continue
        lines += ["", f"## {(group.title or '').capitalize()}", "", "| flag | |", "|---|---|"]
        for action in actions:
            names = ", ".join(f"`{name}`" for name in action.option_strings)
            value = action.metavar or "" if action.nargs != 0 else ""
            if action.choices and action.nargs != 0:
                value = "|".join(map(str, action.choices))
            value = value.replace("|", " \\| ")
            text = (action.help or "").replace("%%", "%").replace("|", "\\|")
            lines.append(f"| {f'{names} {value}'.strip()} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    page = flags_page()
    if not check:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        print("docs/flags.md is out of date; run: python -m docs.generate")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
