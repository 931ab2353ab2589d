"""``python -m kvflow_jax.cache_tool``: list, trim or clear the cache folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from kvflow_jax.config.values import POSITIVE
from kvflow_jax.models.loading.cache_folder import (
    KINDS,
    CacheEntry,
    CacheFolder,
    CacheInUseError,
    default_cache_dir,
)

GIB, MIB = 1 << 30, 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code, 1 if a start uses the folder."""
    args = _parser().parse_args(argv)
    folder = CacheFolder(args.cache_dir)
    try:
        if args.clear is not None:
            removed = folder.clear(None if args.clear == "all" else args.clear)
        elif args.max_gib is not None:
            removed = folder.trim(int(args.max_gib * GIB))
        else:
            print(listing(folder))
            return 0
    except CacheInUseError as error:
        print(f"kvflow-jax cache: {error}", file=sys.stderr)
        return 1
    print(f"removed {_total(removed)} from {folder.path}")
    return 0


def listing(folder: CacheFolder) -> str:
    """Return the entries of a folder as a table: each model, and the sums of the other kinds."""
    entries = folder.entries()
    rows = [
        _row(entry.kind.removesuffix("s"), [entry], entry.path.name)
        for entry in reversed(entries)
        if entry.kind == "models"
    ]
    for kind in KINDS:
        listed = [entry for entry in entries if entry.kind == kind]
        if kind != "models" and listed:
            rows.append(_row(kind, listed, str(len(listed))))
    return "\n".join([f"{folder.path}: {_total(entries)}", *rows])


def _row(kind: str, entries: Sequence[CacheEntry], name: str) -> str:
    num_bytes = sum(entry.num_bytes for entry in entries)
    last = datetime.fromtimestamp(max(entry.last_used_s for entry in entries))
    return f"  {kind:<9}{num_bytes / MIB:>10.1f} MiB   used {last:%Y-%m-%d %H:%M}   {name}"


def _total(entries: Sequence[CacheEntry]) -> str:
    num_bytes = sum(entry.num_bytes for entry in entries)
    return f"{len(entries)} entries, {num_bytes / MIB:.1f} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvflow-jax cache",
        description="List the converted models, built kernels and compiled programs that later "
        "starts reuse, or remove some. Nothing is lost: a start makes them again.",
    )
    parser.add_argument(
        "--cache-dir",
        type=lambda text: Path(text).expanduser(),
        metavar="FOLDER",
        default=os.environ.get("KVFLOW_CACHE_DIR") or default_cache_dir(),
        help="default: KVFLOW_CACHE_DIR, or ~/.cache/kvflow-jax",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--clear",
        nargs="?",
        const="all",
        choices=["all", *KINDS],
        help="remove all entries, or those of a kind",
    )
    action.add_argument(
        "--max-gib",
        type=_gib,
        metavar="GIB",
        help="remove the least recently used entries until the rest is not larger",
    )
    return parser


def _gib(text: str) -> float:
    try:
        return POSITIVE.of_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
