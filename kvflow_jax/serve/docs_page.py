"""An OpenAPI document as a page of HTML, without scripts and without anything of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
code { font: 13px/1.5 ui-monospace, monospace }
h2 { border-top: 1px solid #8884; margin-top: 2rem; padding-top: 1rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #8884; padding: .2rem .6rem; text-align: left }
:root { color-scheme: light dark }
"""


def docs_page(document: Json) -> str:
    """Return the page of a document: each route with the fields of its body."""
    title = f"{escape(document['info']['title'])} {escape(document['info']['version'])}"
    schemas = document["components"]["schemas"]
    body = "\n".join(_sections(document["paths"], schemas))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>The same as <a href="openapi.json">openapi.json</a>. A route that is marked needs the API key, as
<code>Authorization: Bearer &lt;key&gt;</code> or <code>x-api-key: &lt;key&gt;</code>.</p>
{body}
<h2>Errors</h2>
<p>Every error has this form, on <code>/v1/messages</code> Anthropic's.</p>
{_table(schemas["Error"]["properties"]["error"], schemas)}
</body>
</html>
"""


def _sections(paths: Json, schemas: Json) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            key = " · needs the key" if "security" in operation else ""
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation['summary'])}{key}</p>"
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            for one in (schema or {}).get("anyOf") or ([schema] if schema else []):
                yield _table(_resolve(one, schemas), schemas)


def _table(schema: Json, schemas: Json) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code></td>"
        f"<td>{escape(_type(field, schemas))}{', required' if name in required else ''}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(rows)}</table>"


def _type(schema: Json, schemas: Json) -> str:
    """Return the type of a field in words; null stands for its absence and is left out."""
    schema = _resolve(schema, schemas)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        names = [_type(one, schemas) for one in choices if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    if "const" in schema or "enum" in schema:
        return " or ".join(repr(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(name for name in kind if name != "null")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}), schemas)}"
    return str(kind)


def _resolve(schema: Json, schemas: Json) -> Json:
    name = schema.get("$ref", "").rpartition("/")[2]
    return schemas[name] if name else schema
