"""The OpenAPI document says what is served, and the page shows it without the network."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute

from tests.serve.serve_fakes import LiveServer, live_server
from tests.serve.serve_requests import error_of

# Routes that read no body.
WITHOUT_BODY = {("post", "/flush_cache"), ("post", "/ping")}


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def test_every_route_is_in_the_document_with_its_body(
    document: dict[str, Any], live: LiveServer
) -> None:
    assert OpenAPI.model_validate(document).openapi.startswith("3.")
    served = {
        (method.lower(), route.path_format)
        for route in live.server.config.app.state.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    described = {
        (method, path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(described) == served
    for route, operation in described.items():
        reads_body = route[0] in ("post", "put") and route not in WITHOUT_BODY
        assert ("requestBody" in operation) == reads_body, route
        assert "422" not in operation["responses"]


def test_every_reference_leads_to_a_schema(document: dict[str, Any]) -> None:
    names = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))
    assert {"ChatRequest", "CompletionRequest", "ResponsesRequest", "MessagesRequest"} < set(names)
    assert set(names) <= set(document["components"]["schemas"])


def test_the_described_types_are_those_that_are_checked(
    http: httpx.Client, document: dict[str, Any]
) -> None:
    schema = document["components"]["schemas"]["ChatRequest"]
    assert schema["required"] == ["messages"]
    assert schema["properties"]["temperature"]["description"].startswith("divides the logits")
    body = {"messages": [{"role": "user", "content": "hi"}]}
    wrong = {"integer": "7", "boolean": "yes", "number": "1", "string": 7}
    num_checked = 0
    for name, field in schema["properties"].items():
        for kind in (one.get("type") for one in field.get("anyOf", ())):
            if kind in wrong:
                answer = http.post("/v1/chat/completions", json={**body, name: wrong[kind]})
                assert error_of(answer, 400)["param"] == name
                num_checked += 1
    assert num_checked > 20


def test_a_stream_and_the_form_of_errors_are_described(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/messages"]["post"]["responses"]
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    error = responses["default"]["content"]["application/json"]["schema"]["$ref"]
    assert error.endswith("/MessagesError")


def test_routes_that_need_a_key_say_so() -> None:
    with live_server(api_keys=("k",)) as live, httpx.Client(base_url=live.url) as http:
        document = http.get("/openapi.json").json()
        assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
        for path, operations in document["paths"].items():
            if operation := operations.get("get"):
                url = path.replace("{", "").replace("}", "")
                assert (http.get(url).status_code == 401) == ("security" in operation), path
