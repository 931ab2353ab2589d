"""JSON Schemas of the tools in the Berkeley Function-Calling Leaderboard's files (BFCL)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# The types of its schemas, Python's in part, and those of JSON Schema; ``any`` has none.
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}


def sample_tools(folder: Path, num_tools: int, seed: int = 0) -> list[tuple[str, str, Any]]:
    """Return name, description and schema of different tools, drawn from all files of a folder."""
    tools = {tool["name"]: tool for tool in _read_tools(folder)}
    names = np.random.default_rng(seed).permutation(sorted(tools))[:num_tools].tolist()
    return [(name, tools[name]["description"], to_json_schema(tools[name])) for name in names]


def to_json_schema(tool: dict[str, Any]) -> Any:
    """Return the JSON Schema of a tool's arguments."""
    return _convert(tool["parameters"])


def _read_tools(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.json")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            yield from entry.get("function", [entry] if "parameters" in entry else [])


def _convert(schema: Any) -> Any:
    """Replace the types of a schema; values such as ``default`` and ``enum`` are no schemas."""
    if not isinstance(schema, dict):
        return schema
    converted = dict(schema)
    if (kind := _TYPES.get(schema.get("type", ""), schema.get("type"))) is None:
        converted.pop("type", None)
    else:
        converted["type"] = kind
    if "properties" in schema:
        converted["properties"] = {k: _convert(v) for k, v in schema["properties"].items()}
    for name in ("items", "additionalProperties"):
        if name in schema:
            converted[name] = _convert(schema[name])
    return converted
