"""Structured output through the engine: whatever else happens, the text follows its grammar."""

import json
import re
from pathlib import Path

import jsonschema
import openai
import pytest

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.server import Server, bind
from tests.support.grammar_engine import EOS, TOKENIZER, Client, json_schema, make_engine
from tests.support.served import running

TOOL_SCHEMAS = json.loads((Path(__file__).parents[1] / "grammar" / "tool_schemas.json").read_text())
PERSON = json_schema(
    type="object",
    properties={"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["a"]}}},
    required=["name", "tags"],
    additionalProperties=False,
)


def run(engine):
    for _ in range(5000):
        if not engine.step() and engine.is_idle:
            return
        engine.check_integrity()
    raise AssertionError("the engine does not become idle")


def assert_follows(client):
    """A finished text is complete, a cut one is a prefix that the grammar accepts."""
    matcher = client.grammar.clone()
    for token in client.tokens[: -1 if client.tokens[-1] == EOS else None]:
        matcher.accept(token)
    may_end = matcher.mask[EOS // 32] >> (EOS % 32) & 1
    assert client.reason is (FinishReason.STOP if may_end else FinishReason.LENGTH)


@pytest.mark.parametrize("name", TOOL_SCHEMAS)
def test_the_arguments_of_a_real_tool_validate_or_are_cut(name):
    engine = make_engine()
    clients = [
        Client(engine, f"prompt {i}", structured_outputs={"json": TOOL_SCHEMAS[name]})
        for i in range(6)
    ]
    run(engine)
    for client in clients:
        assert_follows(client)
        if client.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(client.text), TOOL_SCHEMAS[name])


@pytest.mark.parametrize("deterministic", [False, True])
def test_requests_with_and_without_a_grammar_run_together(deterministic):
    alone, together = make_engine(), make_engine(deterministic=deterministic)
    plain = [Client(alone, f"plain {i}", max_tokens=30, ignore_eos=True) for i in range(2)]
    run(alone)
    mixed = [Client(together, f"plain {i}", max_tokens=30, ignore_eos=True) for i in range(2)]
    constrained = [Client(together, f"json {i}", structured_outputs=PERSON) for i in range(2)]
    run(together)
    assert [client.tokens for client in mixed] == [client.tokens for client in plain]
    for client in constrained:
        assert_follows(client)
        jsonschema.validate(json.loads(client.text), json.loads(PERSON.json))


def test_other_rows_do_not_wait_for_a_row_with_a_grammar():
    engine = make_engine()
    plain = Client(engine, "plain", max_tokens=30, ignore_eos=True)
    Client(engine, "json", structured_outputs=PERSON)
    engine.step()
    for _ in range(20):
        before = len(plain.tokens)
        engine.step()
        assert len(plain.tokens) == before + 1 or not before


def test_only_allowed_tokens_are_sampled_at_the_pace_of_other_requests():
    engine = make_engine(num_pages=24)
    allowed = tuple(TOKENIZER.encode("0123456789", add_special_tokens=False))
    clients = [Client(engine, f"p{i}", allowed_token_ids=allowed, max_tokens=60) for i in range(4)]
    for _ in range(8):
        engine.step()
    assert len(clients[0].tokens) >= 6  # a token a step: the mask needs no earlier token
    run(engine)
    assert sum(client.outputs[-1].stats.num_preemptions for client in clients) > 0
    for client in clients:
        assert re.fullmatch("[0-9]{60}", client.text)
        assert client.reason is FinishReason.LENGTH


def test_preempted_requests_follow_their_grammar():
    # Each fits alone, but not all of them.
    engine = make_engine(num_pages=24)
    digits = {"regex": "[0-9]{60}"}
    clients = [Client(engine, f"p{i}", structured_outputs=digits) for i in range(4)]
    run(engine)
    assert sum(client.outputs[-1].stats.num_preemptions for client in clients) > 0
    for client in clients:
        assert re.fullmatch("[0-9]{60}", client.text)
        assert client.reason is FinishReason.STOP


def test_a_complete_grammar_ends_the_request_with_its_last_token():
    engine = make_engine()
    client = Client(engine, "a", structured_outputs={"choice": ["yes", "no"]}, min_tokens=20)
    run(engine)
    assert client.text in ("yes", "no")
    assert client.reason is FinishReason.STOP
    assert not client.outputs[-1].ends_at_token
    assert TOKENIZER.decode(client.tokens) == client.text


def test_a_request_that_ignores_the_end_of_text_ends_with_its_grammar():
    engine = make_engine()
    client = Client(engine, "a", structured_outputs={"regex": "[a-c]*"}, ignore_eos=True)
    run(engine)
    assert client.reason is FinishReason.STOP
    assert re.fullmatch("[a-c]*", client.text)


def test_a_stop_string_ends_the_text_within_a_grammar():
    engine = make_engine()
    client = Client(engine, "a", structured_outputs={"regex": "[ab]{90}"}, stop="ab")
    run(engine)
    assert client.outputs[-1].stop_reason == "ab"
    assert re.fullmatch("b*a*", client.text)


def test_a_grammar_that_cannot_be_followed_ends_only_its_request():
    engine = make_engine()
    bad = Client(engine, "bad", structured_outputs={"regex": "[ab]{90}"})
    good = Client(engine, "good", structured_outputs={"choice": ["yes", "no"]})
    engine.step()
    (request,) = (one for one in engine.scheduler.running if one.id == bad.id)
    request.matcher = good.grammar.clone()  # which allows no "a" and no "b"
    run(engine)
    assert bad.reason is FinishReason.ERROR
    assert "grammar" in str(bad.outputs[-1].error)
    assert good.text in ("yes", "no")


def test_a_request_without_its_compiled_grammar_is_refused():
    params = SamplingParams(structured_outputs=PERSON)
    with pytest.raises(InvalidRequestError, match="compiled for this model"):
        make_engine().check(RequestSpec([1], params))


@pytest.fixture(scope="module")
def client():
    """A client of the production server over the engine that follows masks."""
    build = (EngineThread(make_engine(num_pages=256)), TOKENIZER, "masked")
    config = ServerConfig(port=0, load=LoadConfig("masked"))
    with (
        running(Server(config, bind("127.0.0.1", 0), lambda config: build)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("name", TOOL_SCHEMAS)
def test_openais_client_gets_arguments_that_validate_streamed_or_not(client, name):
    schema = TOOL_SCHEMAS[name]
    asked = {
        "model": "masked",
        "messages": [{"role": "user", "content": name}],
        "max_completion_tokens": 150,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "arguments", "schema": schema, "strict": True},
        },
    }
    (whole,) = client.chat.completions.create(**asked).choices
    with client.chat.completions.create(**asked, stream=True) as stream:
        pieces = [chunk.choices[0] for chunk in stream]
    text = "".join(piece.delta.content or "" for piece in pieces)
    assert (text, pieces[-1].finish_reason) == (whole.message.content, whole.finish_reason)
    if whole.finish_reason == "stop":
        jsonschema.validate(json.loads(text), schema)


def test_a_schema_that_cannot_be_followed_is_a_400_with_its_keyword(client):
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(
            model="masked",
            messages=[{"role": "user", "content": "x"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "array", "uniqueItems": True}},
            },
        )
    assert caught.value.param == "response_format"


def test_every_choice_and_every_prompt_follows_the_grammar_alone(client):
    answer = client.completions.create(
        model="masked",
        prompt=["one", "two"],
        n=3,
        max_tokens=20,
        extra_body={"guided_choice": ["yes", "no", "maybe"]},
    )
    assert len(answer.choices) == 6
    assert {choice.text for choice in answer.choices} <= {"yes", "no", "maybe"}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
