"""Generate what the documentation takes from the code.

    python -m docs.generate            # write docs/flags.md, and the lines that links lead to
    python -m docs.generate --check    # fail where they are not what the code says

A link whose text is code, such as [`Scheduler.schedule`](../kvflow_jax/engine/scheduler.py#L1),
leads to the line where that class, function or method is defined.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

from kvflow_jax.serve.__main__ import make_parser

DOCS = Path(__file__).parent
ROOT = DOCS.parent
_LINK = re.compile(r"\[`([\w.]+)`\]\(((?:\.\./)+[\w/]+\.py)#L\d+\)")


def flags_page() -> str:
    """Return the page of the server's flags, by group, as Markdown."""
    lines = [
        "# Flags of the server",
        "",
        "`python -m kvflow_jax.serve --help` prints the same; the code generates this page.",
    ]
    for group in make_parser()._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if not actions:
            continue
        title = (group.title or "").capitalize()
        lines += ["", f"## {title}", "", "| flag | |", "|---|---|"]
        for action in actions:
            names = ", ".join(f"`{name}`" for name in action.option_strings)
            value = action.metavar or "" if action.nargs != 0 else ""
            if action.choices and action.nargs != 0:
                value = " \\| ".join(map(str, action.choices))
            text = " ".join((action.help or "").split()) % {"default": action.default}
            text = text.replace(str(Path.home()), "~").replace("|", "\\|")
            lines.append(f"| {f'{names} {value}'.strip()} | {text} |")
    return "\n".join(lines) + "\n"


def linked(page: Path) -> str:
    """Return a page with every link to a definition leading to its line."""

    def rewrite(match: re.Match[str]) -> str:
        path = (page.parent / match[2]).resolve()
        line = line_of(path, match[1])
        return f"[`{match[1]}`]({match[2]}#L{line})"

    return _LINK.sub(rewrite, page.read_text())


def line_of(path: Path, name: str) -> int:
    """Return the line, from 1, at which a class, function or ``Class.method`` is defined.

    Raises:
        LookupError: the file defines no such name.
    """
    body = ast.parse(path.read_text()).body
    line = 0
    for part in name.split("."):
        for node in body:
            names = [getattr(node, "name", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [getattr(target, "id", None) for target in targets]
            if part in names:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {name}")
    return line


def main() -> int:
    """Write the generated parts, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    pages = {DOCS / "flags.md": flags_page()}
    pages |= {page: linked(page) for page in sorted(DOCS.rglob("*.md")) if page not in pages}
    stale = [page for page, text in pages.items() if not page.exists() or page.read_text() != text]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is not what the code says' if check else 'written'}")
        if not check:
            page.write_text(pages[page])
    if check and stale:
        print("run: python -m docs.generate")
    return bool(check and stale)


if __name__ == "__main__":
    sys.exit(main())
