"""Discovery of the model, under the names of fields that clients read."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.serve_fakes import FakeEngine, LiveServer, live_server
from tests.serve.serve_requests import CHAT, HELLO, error_of


@pytest.mark.parametrize("name", ["tiny", "tiny-dir"])
def test_the_model_is_accepted_under_its_name_and_that_of_the_flag(
    client: openai.OpenAI, live: LiveServer, name: str
) -> None:
    assert client.chat.completions.create(model=name, messages=HELLO).model == "tiny"
    assert client.models.retrieve(name).id == "tiny"


def test_a_card_has_the_context_under_each_name(http: httpx.Client, engine: FakeEngine) -> None:
    models = http.get("/v1/models").json()
    (card,) = models["data"]
    assert (models["object"], card["object"], card["id"]) == ("list", "model", "tiny")
    length = engine.max_model_len
    assert card["max_model_len"] == card["context_length"] == card["meta"]["n_ctx"] == length
    assert models["models"] == [
        {"slug": "tiny", "display_name": "tiny", "context_window": engine.max_model_len}
    ]


@pytest.fixture(scope="module")
def three_names() -> Iterator[httpx.Client]:
    names = ("owner/main", "haiku", "review", "haiku")
    with (
        live_server(served_model_names=names) as live,
        httpx.Client(base_url=live.url, timeout=20) as http,
    ):
        yield http


def test_every_served_name_is_listed_and_accepted(three_names: httpx.Client) -> None:
    models = three_names.get("/v1/models").json()
    assert [card["id"] for card in models["data"]] == ["owner/main", "haiku", "review"]
    assert [model["slug"] for model in models["models"]] == ["owner/main", "haiku", "review"]
    for name in ("owner/main", "haiku", "review"):
        assert three_names.get(f"/v1/models/{name}").json()["id"] == name
        answer = three_names.post(CHAT, json={"model": name, "messages": HELLO}).json()
        assert answer["model"] == "owner/main"


def test_a_name_that_is_a_path_is_found() -> None:
    names = ("/models/qwen", "/models//llama/", "owner/main")
    with (
        live_server(served_model_names=names) as live,
        httpx.Client(base_url=live.url, timeout=20) as http,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client,
    ):
        for name in names:
            assert client.models.retrieve(name).id == name
            # Clients write the slashes of a name as they are, or encoded.
            assert http.get(f"/v1/models/{name}").json()["id"] == name
            assert http.get(f"/v1/models/{name.replace('/', '%2F')}").json()["id"] == name
        assert error_of(http.get("/v1/models//models"), 404)["code"] == "model_not_found"


def test_the_error_of_an_unknown_name_has_those_that_are_served(three_names: httpx.Client) -> None:
    # The model's own name is none of them.
    for answer in (
        three_names.get("/v1/models/tiny"),
        three_names.post(CHAT, json={"model": "tiny", "messages": HELLO}),
    ):
        error = error_of(answer, 404)
        assert error["code"] == "model_not_found"
        assert "'owner/main', 'haiku', 'review'" in error["message"]
