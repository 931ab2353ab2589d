"""Sessions, subagents and compactions that are read from what clients send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.serve.client_identity import (
    Identified,
    IdentitySource,
    read_identity,
)
from kvflow_jax.serve.client_ids import MAX_ID_CHARS, MAX_JSON_CHARS
from kvflow_jax.workflow.hints import Hints
from tests.serve import agent_requests as agents
from tests.serve.agent_requests import OTHER_SESSION, SESSION, Sent
from tests.serve.serve_fakes import FakeEngine, live_server
from tests.support.scripted_runner import ScriptedServer, scripted_server

SYSTEM = {"role": "system", "content": "You are an agent."}
USER = {"role": "user", "content": "Fix the test."}


def identified(
    headers: dict[str, str] | None = None, messages: Any = (SYSTEM, USER), **fields: Any
) -> Identified | None:
    return read_identity(headers or {}, fields, messages, ["bash"])


def identity(
    headers: dict[str, str] | None = None, messages: Any = (SYSTEM, USER), **fields: Any
) -> Hints:
    found = identified(headers, messages, **fields)
    assert found is not None
    assert found.identity is not None
    return found.identity


@pytest.mark.parametrize(
    ("sent", "source"),
    [
        (agents.claude_code(), IdentitySource.CLAUDE_CODE),
        (agents.codex(), IdentitySource.CODEX),
        (agents.opencode(), IdentitySource.OPENCODE),
        (agents.pi(), None),
        (agents.pi().with_headers(session_id=SESSION), IdentitySource.SESSION_HEADER),
        (agents.qwen_code(), None),
        (agents.qwen_code().with_body(metadata={"sessionId": "s"}), IdentitySource.BODY),
        (agents.with_call(agents.pi()), IdentitySource.CALLS),
        (agents.with_call(agents.qwen_code()), IdentitySource.CALLS),
        (agents.with_call(agents.cline()), IdentitySource.CALLS),
        (agents.cline(), None),
        (agents.continue_dev(), None),
        (agents.mini_swe_agent(), None),
    ],
)
def test_each_agent_is_known_by_what_it_sends(sent: Sent, source: IdentitySource | None) -> None:
    messages = sent.body["messages"] if "chat" in sent.path else [SYSTEM, USER]
    found = read_identity(sent.headers, sent.body, messages, ["bash"])
    assert (found and found.source) == source


@pytest.mark.parametrize("sent", [agents.codex(), agents.codex_subagent()])
def test_identity_survives_a_router_that_drops_headers(sent: Sent) -> None:
    whole = read_identity(sent.headers, sent.body, [SYSTEM, USER], ["bash"])
    assert read_identity({}, sent.body, [SYSTEM, USER], ["bash"]) == whole


def test_without_headers_subagents_of_claude_code_are_told_apart_by_what_they_are_told() -> None:
    body = agents.claude_code().body
    main = identity(metadata=body["metadata"])
    sub = identity(messages=[{**SYSTEM, "content": "Explore."}, USER], metadata=body["metadata"])
    other = identity(messages=[SYSTEM, {**USER, "content": "Look."}], metadata=body["metadata"])
    assert len({one.session_id for one in (main, sub, other)}) == 3
    assert {one.workflow_id for one in (main, sub, other)} == {SESSION}


@pytest.mark.parametrize(
    "user_id",
    [f'{{"device_id": "0", "session_id": "{SESSION}"}}', f"user_00_account__session_{SESSION}"],
)
def test_the_session_in_the_user_id_of_claude_code(user_id: str) -> None:
    assert identity(metadata={"user_id": user_id}).workflow_id == SESSION


def test_subagents_of_claude_code_have_conversations_of_their_own() -> None:
    headers = {"x-claude-code-session-id": SESSION}
    main = identity(headers)
    child = identity({**headers, "x-claude-code-agent-id": "a1"})
    deep = identity(
        {**headers, "x-claude-code-agent-id": "a2", "x-claude-code-parent-agent-id": "a1"}
    )
    assert len({main.session_id, child.session_id, deep.session_id}) == 3
    assert (main.parent_session_id, child.parent_session_id) == (None, main.session_id)
    assert deep.parent_session_id == child.session_id
    assert {one.workflow_id for one in (main, child, deep)} == {SESSION}


def test_windows_of_codex_are_generations_of_one_thread() -> None:
    sent = agents.codex(generation=3)
    one = identity(sent.headers)
    assert (one.session_id, one.session_generation) == (SESSION, 3)
    headers = {
        "thread-id": OTHER_SESSION,
        "session-id": SESSION,
        "x-codex-parent-thread-id": SESSION,
        "x-openai-subagent": "review",
    }
    child = identity(headers)
    assert (child.session_id, child.parent_session_id) == (OTHER_SESSION, SESSION)
    assert (child.workflow_id, child.session_generation) == (SESSION, None)


@pytest.mark.parametrize("window", [":", "x:", ":1", "t:-1", "t:1e3", f"t:{'9' * 10}", "t:²"])
def test_a_window_that_is_no_generation_tells_none(window: str) -> None:
    found = identified({"x-codex-window-id": window, "thread-id": "t"})
    assert found is not None
    assert found.identity is not None
    assert (found.identity.session_id, found.identity.session_generation) == ("t", None)


def test_children_of_opencode_and_dynamo_name_their_parents() -> None:
    for names in (
        ("x-session-affinity", "x-parent-session-id"),
        ("x-dynamo-session-id", "x-dynamo-parent-session-id"),
    ):
        one = identity(dict(zip(names, ("child", "root"), strict=True)))
        assert (one.session_id, one.parent_session_id) == ("child", "root")
        assert one.workflow_id == "root"
    assert identity({"user-agent": "opencode/1", "x-session-id": "s"}).session_id == "s"
    final = identity({"x-dynamo-session-id": "s", "x-dynamo-session-final": "true"})
    assert final.session_final


def test_ids_that_conversations_may_share_are_told_apart_by_the_first_message() -> None:
    first = identity(prompt_cache_key="app")
    later = identity(
        prompt_cache_key="app",
        messages=[SYSTEM, USER, {"role": "assistant", "content": "Done."}, USER],
    )
    other = identity(prompt_cache_key="app", messages=[SYSTEM, {"role": "user", "content": "Hi."}])
    assert first.session_id == later.session_id != other.session_id
    assert first.workflow_id == other.workflow_id == "app"
    for fields in ({"session_id": "s"}, {"metadata": {"session_id": "s"}}):
        assert identity(**fields).workflow_id == "s"  # type: ignore[arg-type]


def test_dates_paths_and_ids_make_no_other_role() -> None:
    def role(text: str, tools: tuple[str, ...] = ("bash",)) -> str | None:
        messages = [{"role": "system", "content": text}, USER]
        found = read_identity({"x-session-affinity": "s"}, {}, messages, tools)
        assert found is not None
        assert found.identity is not None
        return found.identity.agent_id

    same = {
        role(f"You are an agent.\nCwd: {cwd}\nDate: {date}\nSession {number}")
        for cwd, date, number in (
            ("/home/user/a", "Fri Nov 28 2026", 7),
            ("C:\\work", "Monday, March 2 2026, 9:04 AM", "5e0d8a52-0000"),
        )
    }
    assert len(same) == 1
    assert role("You are an agent.") != role("You are another agent.")
    assert role("You are an agent.") == role("You are an agent.", ("bash", "edit"))
    assert role("You are an agent.") != role("You are an agent.", ())
    assert role("") != role("", ("bash", "edit"))


def test_a_conversation_without_ids_is_known_by_its_first_call() -> None:
    def session(call_id: Any, text: str = "Fix the test.") -> str | None:
        call = {"id": call_id, "function": {"name": "bash", "arguments": {}}}
        chat = [SYSTEM, {"role": "user", "content": text}]
        for one in (call, {**call, "id": "later"}):
            chat.append({"role": "assistant", "content": "", "tool_calls": [one]})  # type: ignore[dict-item]
        found = identified(messages=chat)
        assert found is None or found.identity is None or found.identity.workflow_id is None
        return None if found is None or found.identity is None else found.identity.session_id

    assert session("call_1") == session("call_1") is not None
    assert session("call_1") != session("call_2")
    assert session("call_1") != session("call_1", "Another task.")  # a client that numbers calls
    for call_id in (None, "", 5, "c" * (1 << 20)):
        assert session(call_id) is None


def test_a_subagent_of_codex_is_known_by_the_metadata_of_its_turn() -> None:
    def parent(turn: Any) -> str | None:
        metadata = {"thread_id": "t", "x-codex-turn-metadata": turn}
        return identity(client_metadata=metadata).parent_session_id

    assert parent('{"parent_thread_id": "p"}') == "p"
    for turn in ("", "[]", "{", '{"parent_thread_id": 5}', '{"a": "' + "x" * MAX_JSON_CHARS, 5):
        assert parent(turn) is None


def test_titles_are_no_part_of_the_conversation_that_they_name() -> None:
    headers = {"x-claude-code-session-id": SESSION}
    found = read_identity(headers, {}, [SYSTEM, USER], [])
    assert found is not None
    assert found.identity is not None
    assert (found.identity.session_id, found.identity.workflow_id) == (None, SESSION)
    chat = [SYSTEM, USER, {"role": "assistant", "content": "Done."}, USER]
    continued = read_identity(headers, {}, chat, [])
    assert continued is not None
    assert continued.identity is not None
    assert continued.identity.session_id == SESSION


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_key": "k" * (1 << 20)},
        {"prompt_cache_key": ""},
        {"prompt_cache_key": 5},
        {"metadata": {"session_id": ["s"]}},
        {"metadata": {"user_id": '{"session_id": "' + "s" * MAX_JSON_CHARS + '"}'}},
        {"metadata": {"user_id": '{"session_id": 5}'}},
        {"client_metadata": {"session_id": "s" * (MAX_ID_CHARS + 1)}},
    ],
)
def test_ids_of_no_use_are_counted_and_ignored(fields: dict[str, Any]) -> None:
    assert identified(**fields) == Identified(IdentitySource.INVALID, None)


@pytest.mark.parametrize("user_id", ['{"a":' * 800, "{", 5, None, "someone", "x_session_"])
def test_other_user_ids_say_nothing(user_id: Any) -> None:
    found = identified(metadata={"user_id": user_id})
    assert found is None or found.identity is None


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["user_id", "session_id", "thread_id", "x-codex-window-id"]), inner
        )
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["metadata", "client_metadata", "prompt_cache_key", "session_id"])
HEADERS = st.sampled_from(
    [
        *("x-claude-code-session-id", "x-claude-code-agent-id", "x-codex-window-id", "thread-id"),
        *("x-session-id", "x-session-affinity", "x-parent-session-id", "x-dynamo-session-id"),
    ]
)


@given(st.dictionaries(HEADERS, st.text(max_size=200)), st.dictionaries(NAMES, ANY))
def test_any_headers_and_fields_can_be_read(headers: dict[str, str], fields: Any) -> None:
    found = read_identity(headers, fields, [SYSTEM, USER], ["bash"])
    if found is not None and found.identity is not None:
        one = found.identity
        assert one.session_id != one.parent_session_id or one.session_id is None
        ids = (one.workflow_id, one.agent_id, one.session_id, one.parent_session_id)
        assert all(0 < len(name) <= 256 for name in ids if name is not None)


# Through the server.


def post(http: httpx.Client, engine: FakeEngine, sent: Sent) -> Hints | None:
    """Send a request, and return the hints that the engine got."""
    engine.requests.clear()
    answer = http.post(sent.path, headers=sent.headers, json=sent.body)
    assert answer.status_code == 200, answer.text
    (request,) = engine.requests.values()
    return request.hints


@pytest.mark.parametrize(
    "sent",
    [
        agents.claude_code(),
        agents.codex(),
        agents.opencode(),
        agents.pi().with_body(prompt_cache_key=SESSION),
        agents.with_call(agents.cline()),
    ],
)
def test_identity_becomes_hints_on_every_route(
    http: httpx.Client, engine: FakeEngine, sent: Sent
) -> None:
    hints = post(http, engine, sent)
    assert hints is not None
    assert None not in (hints.session_id, hints.agent_id)
    assert not hints.is_clipped
    assert not hints.has_unused
    assert hints.num_fixed


@pytest.mark.parametrize("sent", [agents.cline(), agents.continue_dev(), agents.mini_swe_agent()])
def test_clients_that_name_no_session_have_no_hints(
    http: httpx.Client, engine: FakeEngine, sent: Sent
) -> None:
    assert post(http, engine, sent) is None


def test_hints_of_the_caller_come_first(http: httpx.Client, engine: FakeEngine) -> None:
    own = agents.codex().with_body(agent_hints={"agent_id": "planner", "workflow_id": "w"})
    hints = post(http, engine, own)
    assert hints is not None
    assert (hints.agent_id, hints.workflow_id) == ("planner", "w")
    assert (hints.session_id, hints.session_generation) == (SESSION, None)  # the cache key
    hints = post(http, engine, agents.codex().with_body(agent_hints={"priority": 3}))
    assert hints is not None
    assert (hints.priority, hints.session_generation) == (3, 0)


def test_a_flag_ignores_what_clients_send() -> None:
    with (
        live_server(disable_client_identity=True) as live,
        httpx.Client(base_url=live.url, timeout=20) as http,
    ):
        for sent in (agents.claude_code(), agents.codex(), agents.with_call(agents.pi())):
            assert post(http, live.engine, sent) is None


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


def ask(http: httpx.Client, server: ScriptedServer, sent: Sent) -> dict[str, Any]:
    server.script("Done.")
    answer = http.post(sent.path, headers=sent.headers, json=sent.body)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_session_is_applied_and_counted(server: ScriptedServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        answer = ask(http, server, agents.claude_code())
        assert answer["kvflow"]["hint_status"] == "applied"
        child = agents.claude_code(SESSION, "Look.").with_headers(x_claude_code_agent_id="a1")
        ask(http, server, child)
        ask(http, server, agents.claude_code(SESSION, "Fix the test.", "Done.", "Thanks."))
        ask(http, server, agents.codex(OTHER_SESSION, 0))
        ask(http, server, agents.codex(OTHER_SESSION, 1, "In short."))
        too_long = agents.codex().with_body(prompt_cache_key="k" * 500, client_metadata=None)
        ask(http, server, Sent(too_long.path, {}, too_long.body))
        metrics = http.get("/metrics").text
    counts = {
        (name, value): float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        for name, value in (
            ("identified_requests", "claude_code"),
            ("identified_requests", "codex"),
            ("identified_requests", "invalid"),
            ("ended_histories", "parent"),
            ("ended_histories", "compaction"),
        )
        if line.startswith(f"kvflow:{name}_total{{") and f'"{value}"' in line
    }
    assert counts == {
        ("identified_requests", "claude_code"): 3.0,
        ("identified_requests", "codex"): 2.0,
        ("identified_requests", "invalid"): 1.0,
        ("ended_histories", "parent"): 1.0,
        ("ended_histories", "compaction"): 1.0,
    }


def test_a_mark_on_every_block_ends_the_fixed_prefix_at_the_last_of_the_system(
    http: httpx.Client, engine: FakeEngine
) -> None:
    sent = agents.claude_code(SESSION, *["Go on."] * 9)
    for block in [*sent.body["system"], *(m["content"][0] for m in sent.body["messages"])]:
        block["cache_control"] = agents.EPHEMERAL
    sent.body["tools"][0]["cache_control"] = agents.EPHEMERAL
    hints = post(http, engine, sent)
    assert hints is not None
    assert hints.num_fixed
    prompt = engine.last.prompt
    assert "cache_control" not in prompt
    assert prompt[: hints.num_fixed].endswith("Working directory: /home/user/project")


def test_ten_thousand_sessions_are_bounded(http: httpx.Client, engine: FakeEngine) -> None:
    one = agents.opencode()
    seen = set()
    for i in range(10_000):
        found = read_identity({"x-session-affinity": f"s{i}"}, one.body, [SYSTEM, USER], ["bash"])
        assert found is not None
        assert found.identity is not None
        seen.add(found.identity.agent_id)
    assert len(seen) == 1  # one role, whatever their number
    # A header is bounded by the server, and a field by the length of an id.
    for sent in (
        one.with_headers(x_session_affinity="s" * 10_000),
        agents.pi().with_body(prompt_cache_key="s" * 100_000),
    ):
        hints = post(http, engine, Sent(sent.path, {**sent.headers, "x-session-id": ""}, sent.body))
        assert hints is None


def num_ended_by_parents(http: httpx.Client) -> float:
    (line,) = [
        line
        for line in http.get("/metrics").text.splitlines()
        if line.startswith("kvflow:ended_histories_total{") and 'reason="parent"' in line
    ]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize(
    ("main", "subagent"),
    [
        (agents.claude_code("s1"), agents.claude_code_subagent("s1")),
        (agents.codex("s2"), agents.codex_subagent("s2")),
        (agents.opencode("s3"), agents.opencode_subagent("s3")),
    ],
)
def test_a_recorded_subagent_ends_when_its_parent_goes_on(
    server: ScriptedServer, main: Sent, subagent: Sent
) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        before = num_ended_by_parents(http)
        for sent in (main, subagent):
            ask(http, server, sent)
            assert num_ended_by_parents(http) == before
        for _ in range(2):
            ask(http, server, main)
            assert num_ended_by_parents(http) == before + 1


def test_the_second_turn_of_a_session_finds_the_first_in_the_cache(
    server: ScriptedServer,
) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        long = "Fix the test. " * 40
        ask(http, server, agents.claude_code("turns", long, checksum="1"))
        answer = ask(
            http, server, agents.claude_code("turns", long, "Done.", "Thanks.", checksum="2")
        )
        usage = answer["usage"]
        assert usage["cache_read_input_tokens"] > 10 * usage["input_tokens"]
