"""The page of the routes, as a browser without a network shows it."""

from __future__ import annotations

import re

import httpx

from kvflow_jax.serve.docs_page import docs_page


def test_the_page_shows_the_fields_and_needs_no_network(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    assert "POST /v1/chat/completions" in page
    assert "max_completion_tokens" in page
    assert not re.search(r"<script|<link|<img|https?://|@import|url\(", page)
    assert http.get("/redoc").status_code == 404


def test_types_are_words_and_markup_is_escaped() -> None:
    fields = {
        "a": {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "of <b>"},
        "b": {"type": "array", "items": {"enum": ["x", "y"]}},
        "c": {"$ref": "#/components/schemas/Other"},
    }
    body = {"type": "object", "properties": fields, "required": ["b"]}
    error = {"properties": {"error": {"properties": {"code": {"type": ["string", "null"]}}}}}
    schemas = {"Body": body, "Other": {"type": "object"}, "Error": error}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}
    post = {"summary": "Do", "requestBody": {"content": content}, "security": []}
    page = docs_page(
        {
            "info": {"title": "<t>", "version": "1"},
            "paths": {"/do": {"post": post}},
            "components": {"schemas": schemas},
        }
    )
    assert "&lt;t&gt; 1" in page
    assert "Do · needs the key" in page
    assert "<td><code>a</code></td><td>integer</td><td>of &lt;b&gt;</td>" in page
    assert "<td>array of &#x27;x&#x27; or &#x27;y&#x27;, required</td>" in page
    assert "<td><code>c</code></td><td>object</td>" in page
    assert "<td><code>code</code></td><td>string</td>" in page
