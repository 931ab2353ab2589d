"""Traces of others: what is shared, who follows whom, and what broken files are told."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.workloads.readers import TraceError, read_trace

VOCAB = 1000


@pytest.fixture
def read(tmp_path):
    """Reads lines, given as objects or as they stand."""

    def call(*lines):
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        return read_trace(path, VOCAB).runs

    return call


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def turn(*messages, **rest):
    return {"messages": [user(m) if isinstance(m, str) else m for m in messages], **rest}


def session(name, *turns, **rest):
    return {"session_id": name, "turns": list(turns), **rest}


def named(run):
    """Calls of each agent, with their numbers."""
    calls = {}
    for number, call in enumerate(run.calls):
        calls.setdefault(call.agent, []).append((number, call))
    return calls


def shared(one, two):
    """Tokens that two calls begin with alike. Both must be without answers."""
    a, b = (np.concatenate(call.parts) for call in (one, two))
    length = min(len(a), len(b))
    return int(np.argmin([*(a[:length] == b[:length]), False]))


def test_mooncake_lines_share_what_has_the_same_hashes(read):
    runs = read(
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3500, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 9]},
        "",
    )
    one, two = (run.calls[0] for run in runs)
    assert [run.start_s for run in runs] == [0.0, 2.5]
    assert [run.prompt_lens for run in runs] == [(1100,), (1030,)]
    assert shared(one, two) == 1024
    assert one.session is None


def test_a_mooncake_line_may_hash_nothing_or_only_its_start(read):
    runs = read(
        {"input_length": 1100, "hash_ids": None, "output_length": None, "timestamp": None},
        {"input_length": 2000, "hash_ids": [1]},
        {"input_length": 1000.0, "hash_ids": [1, 2], "timestamp": 1.7e12},
    )
    assert [run.prompt_lens for run in runs] == [(1100,), (2000,), (1000,)]
    assert [run.start_s for run in runs] == [0.0, 0.0, 0.0]  # as early as the first that says
    assert shared(runs[1].calls[0], runs[2].calls[0]) == 512


def test_mooncake_lines_of_a_session_follow_each_other(read):
    one, other = read(
        {"session_id": "a", "input_length": 300, "output_length": 40, "timestamp": 500},
        {"session_id": "b", "input_length": 20, "timestamp": 250},
        {"session_id": "a", "input_length": 150, "output_length": 20, "delay": 2},
        {"session_id": "a", "input_length": 10, "timestamp": 9000, "delay": 1000},
        {"session_id": "a", "input_length": 10, "timestamp": 9500},
    )
    assert one.prompt_lens == (300, 490, 520, 658)
    assert [call.after for call in one.calls] == [(), (0,), (1,), (2,)]
    assert [call.pause_s for call in one.calls] == [0.0, 0.002, 1.0, 0.5]
    assert [call.is_last for call in one.calls] == [False, False, False, True]
    assert {call.session for call in one.calls} == {"a"}
    assert (one.start_s, other.start_s) == (0.25, 0.0)


def test_mooncake_lines_may_carry_their_text(read):
    tools = [{"type": "function", "function": {"name": "search"}}]
    chat = [system("s" * 400), user("first")]
    first, second, verbatim, text = read(
        {"session_id": "a", "messages": chat, "tools": tools},
        {"messages": [system("s" * 400), user("second")], "tools": tools},
        {"payload": {"messages": chat, "max_tokens": 9}},
        {"text_input": "x" * 40, "output_length": 4},
    )
    assert shared(first.calls[0], second.calls[0]) == first.calls[0].num_fixed + 4
    assert verbatim.calls[0].num_fixed == 104
    assert verbatim.calls[0].num_output == 9
    assert text.prompt_lens == (14,)


def test_messages_of_a_session_are_whole_prompts(read):
    (run,) = read(
        {"session_id": "a", "messages": [user("one")]},
        {"session_id": "a", "messages": [user("one"), {"role": "assistant", "content": "two"}]},
    )
    assert run.prompt_lens == (5, 10)
    assert run.calls[1].after == (0,)


def test_a_dag_forks_with_its_history_and_spawns_without(read):
    (run,) = read(
        session(
            "root",
            turn(system("s" * 36), max_tokens=3, spawns=["helper"]),
            turn("x" * 16, delay=250, forks=["left"]),
        ),
        session("helper", turn("h" * 4), turn("h" * 4)),
        session("left", turn("l" * 8, max_tokens=9)),
    )
    calls = named(run)
    (n0, first), (n1, second) = calls["root"]
    helper, left = calls["helper"], calls["left"][0][1]
    assert first.num_fixed == 13
    assert run.prompt_lens[n0] == 13
    assert second.pause_s == 0.25
    assert set(second.after) == {n0, helper[-1][0]}  # it waits for whom it has spawned
    assert second.parts[1] == n0  # its own answer is part of its history
    assert helper[0][1].after == (n0,)
    assert len(helper[0][1].parts) == 1
    assert left.parts[: len(second.parts)] == second.parts
    assert left.parts[len(second.parts)] == n1
    assert left.num_fixed == 13
    assert left.num_output == 9
    assert left.is_last


def test_sessions_share_the_tokens_of_the_text_they_share(read):
    text = "You review code. " * 100
    tools = [{"function": {"name": "run", "parameters": {}}}]
    runs = read(
        *(session(f"s{i}", turn(system(text), f"Task {i}.", tools=tools)) for i in range(3)),
        session("other", turn(system(text[:800] + "Or not."), tools=tools)),
        session("bare", turn(system(text))),
    )
    one, two, _, other, bare = (run.calls[0] for run in runs)
    assert shared(one, two) >= one.num_fixed
    num_tools = one.num_fixed - bare.num_fixed
    assert num_tools > 0
    assert shared(one, other) == num_tools + 4 + 800 // 4
    assert shared(one, bare) < 16


def test_tools_stay_until_there_are_others(read):
    one, other = [{"name": "search"}], [{"name": "write"}]
    (run,) = read(session("a", turn("1", tools=one), turn("2"), turn("3", tools=other)))
    first, second, third = (call.parts[0] for call in run.calls)
    assert first is second
    assert not np.array_equal(first, third)
    assert run.calls[1].num_fixed == len(first)


def test_pictures_count_nothing_and_calls_of_tools_count(read):
    picture = {"type": "image_url", "image_url": {"url": "data:" + "A" * 4000}}
    content = [{"type": "text", "text": "abcd"}, picture]
    said = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    (run,) = read(session("a", turn({"role": "user", "content": content}), turn(said)))
    assert run.prompt_lens[0] == 5
    assert 4 < len(run.calls[1].parts[-1]) < 20


def test_a_session_that_is_begun_twice_is_played_twice(read):
    (run,) = read(
        session("root", turn("a", spawns=["w"]), turn("b", spawns=["w"]), turn("c")),
        session("w", turn("x", max_tokens=None), turn("y")),
    )
    calls = named(run)
    assert len(calls["w"]) == 4
    assert len({call.session for _, call in calls["w"]}) == 2
    assert calls["w"][0][1].after == (calls["root"][0][0],)
    assert calls["w"][2][1].after == (calls["root"][1][0],)
    assert set(calls["root"][2][1].after) == {calls["root"][1][0], calls["w"][3][0]}


def test_a_fork_in_the_background_lets_its_parent_go_on(read):
    fork = {"child": "b", "background": True}
    (run,) = read(session("a", turn("1", forks=[fork]), turn("2")), session("b", turn("3")))
    calls = named(run)
    assert calls["a"][1][1].after == (calls["a"][0][0],)  # it does not wait
    assert calls["b"][0][1].parts[:2] == calls["a"][1][1].parts[:2]


def test_a_join_may_be_later(read):
    spawn = {"children": ["b", "c"], "join_at": 2}
    (run,) = read(
        session("a", turn("1", spawns=[spawn]), turn("2"), turn("3")),
        session("b", turn("4")),
        session("c", turn("5")),
    )
    calls = named(run)
    (n0, _), (n1, second), (_, third) = calls["a"]
    assert second.after == (n0,)
    assert set(third.after) == {n1, calls["b"][0][0], calls["c"][0][0]}


@pytest.mark.parametrize(
    "rounds",
    [
        {"spawns": ["b", "c"], "rounds": 2, "think_time_ms": 500},
        {"rounds": [{"spawns": ["b", "c"], "think_time_ms": 500}] * 2},
    ],
)
def test_an_orchestrator_begins_rounds_that_wait_for_each_other(read, rounds):
    (run,) = read(
        {"session_id": "root", "orchestrator": True, **rounds},
        session("b", turn("1")),
        session("c", turn("2"), turn("3")),
    )
    b, c = named(run)["b"], named(run)["c"]
    assert len(run.calls) == 6
    first, second = b[0][1], b[1][1]
    assert first.after == ()
    assert set(second.after) == {b[0][0], c[1][0]}
    assert [first.pause_s, second.pause_s, c[0][1].pause_s, c[1][1].pause_s] == [0.5, 0.5, 0.5, 0]


def test_an_orchestrator_without_rounds_waits_for_nobody(read):
    (run,) = read(
        session("root", turn("a", spawns=["o"]), turn("b"), pre_session_spawns=["w"]),
        {"session_id": "o", "orchestrator": True, "turns": [], "spawns": ["w"]},
        session("w", turn("x")),
    )
    calls = named(run)
    (n0, _), (_, last) = calls["root"]
    assert last.after == (n0,)
    assert [call.after for _, call in calls["w"]] == [(), (n0,)]


def test_context_modes_say_what_a_prompt_holds(read):
    mode = {"context_mode": "Message_Array_With_Responses"}
    deltas = {"context_mode": "deltas_with_responses"}
    turns = (turn(system("s" * 4), "1", max_tokens=7), turn(system("t" * 4), "2"))
    arrays, kept, default = read(
        session("a", *turns, **mode), session("b", *turns, **deltas), session("c", *turns)
    )
    assert arrays.prompt_lens == (10, 10)
    assert kept.prompt_lens == (10, 20)
    assert default.prompt_lens == (10, 27)


def test_a_long_row_of_sessions_is_no_recursion(read):
    num_sessions = 3000
    (run,) = read(
        *(
            session(f"s{i}", turn("x", forks=[f"s{i + 1}"] if i < num_sessions - 1 else []))
            for i in range(num_sessions)
        )
    )
    assert len(run.calls) == num_sessions
    assert run.calls[-1].after == (num_sessions - 2,)


def test_json_may_hold_what_other_texts_break_at(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [session("a\u2028b", turn("x\x85\u2029y", "\ud800")), session("c", turn("z"))]
    texts = [json.dumps(lines[0]), json.dumps(lines[1], ensure_ascii=False)]
    texts[0] = texts[0].replace("\\u2028", "\u2028").replace("\\u2029", "\u2029")
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    assert [run.tenant for run in read_trace(path, VOCAB).runs] == ["a\u2028b", "c"]


OK = session("ok", turn("x"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "is empty"),
        (['{"input_length": 5}', "nonsense", "[1]"], "line 2: not JSON.*line 3: not an object"),
        (['{"a": 1}', "{"], "line 1: has neither turns.*line 2: not JSON"),
        ([{"input_length": 0}], "line 1: input_length must be"),
        ([{"input_length": 10**12}], "line 1: input_length must be"),
        ([{"input_length": 5, "messages": [user("x")]}], "line 1: must have one of"),
        ([{"input_length": 400, "hash_ids": [1, 2]}], "line 1: 2 hash_ids of 512 tokens do not"),
        ([{"input_length": 5, "hash_ids": 3}], "line 1: hash_ids must be a list"),
        ([{"text_input": "x", "hash_ids": [3]}], "line 1: hash_ids require an input_length"),
        ([{"input_length": 5, "timestamp": -1}], "line 1: timestamp"),
        ([{"input_length": 5, "delay": float("nan")}], "line 1: delay"),
        ([{"payload": {"prompt": [1, 2]}}], "line 1: payload.prompt must be text"),
        (["[" * 100_000, {"input_length": 5}], "line 1: nested too deeply"),
        (["{" + "9" * 5000, {"input_length": "5"}], "line 1: not JSON.*line 2: input_length"),
        ([session("a")], "line 1: turns must"),
        ([session("a", {"messages": []})], r"line 1: turns\[0\].messages must"),
        ([session("a", turn({"content": "x"}))], r"line 1: turns\[0\].messages\[0\] must have a"),
        ([session("a", turn("x", spawns=5)), session(7, turn("x"))], "1: turns.*2: session_id"),
        ([session("a", turn("x", forks=5))], r"line 1: turns\[0\].forks must be a list"),
        ([session("a", turn("x", forks=[None]))], r"line 1: turns\[0\].forks must be session"),
        ([session("a", turn("x", spawns=[[]]))], r"line 1: turns\[0\].spawns must be session"),
        ([session("a", turn("x", forks=["b"]))], "line 1: there is no session 'b'"),
        ([session("a", turn("x", forks=["ok"]), turn("y")), OK], "unless background is true"),
        (
            [OK, session("b", turn("x", max_tokens=0)), OK],
            "2: max_tokens.*3: session 'ok' is defined",
        ),
        ([session("a", turn("x", tools="x"))], r"line 1: turns\[0\].tools must be a list"),
        ([session("a", turn("x"), context_mode="all")], "line 1: context_mode must be one of"),
        ([session("a", turn("x"), rounds=2)], "line 1: rounds requires an orchestrator"),
        ([{"session_id": "o", "orchestrator": True}], "line 1: an orchestrator must have spawns"),
        ([{"session_id": "o", "orchestrator": "no"}], "line 1: orchestrator must be true or"),
        ([session("o", turn("x"), orchestrator=True)], "line 1: an orchestrator has no turns"),
        (
            [{"session_id": "o", "orchestrator": True, "spawns": ["ok"], "rounds": 10**7}, OK],
            "line 1: its rounds have more than",
        ),
        (
            [session(f"s{i}", turn("x", spawns=[f"s{i + 1}"] * 2)) for i in range(40)]
            + [session("s40", turn("x"))],
            "line 1: with its descendants the file has more than",
        ),
        (
            [
                session("a", turn("x", forks=["b"])),
                session("b", turn("x", forks=["a"])),
                session("c", turn("x", spawns=["c"])),
            ],
            "line 1: sessions start each other in a cycle, lines 1 to 2; line 3: sessions",
        ),
        (
            [session("a", turn("x", spawns=[{"children": ["ok"], "join_at": 0}])), OK],
            r"line 1: turns\[0\].spawns: join_at",
        ),
    ],
)
def test_broken_traces_name_their_lines(read, lines, message):
    with pytest.raises(TraceError, match=message):
        read(*lines)


def test_a_line_that_is_cut_off_is_all_that_is_told_of(read):
    lines = [json.dumps(session(f"s{i}", turn("x" * 40))) for i in range(3)]
    lines += [json.dumps(session("root", turn("x", spawns=["s0", "s1", "s2"])))]
    for place in range(4):
        cut = [line[:30] if i == place else line for i, line in enumerate(lines)]
        with pytest.raises(TraceError, match=rf": line {place + 1}: not JSON[^;]*$"):
            read(*cut)


def told(error):
    """Numbers of lines that an error names."""
    numbers = {int(n) for n in re.findall(r"line (\d+):", str(error))}
    _, _, others = str(error).partition("more broken lines: ")
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", others):
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


DAG = [
    {"session_id": "o", "orchestrator": True, "spawns": ["w"], "rounds": 2, "think_time_ms": 5},
    {"session_id": "p", "orchestrator": True, "rounds": [{"spawns": ["w"], "think_time_ms": 1}]},
    session(
        "root",
        turn(system("s"), "x", spawns=["w", {"children": ["w"], "join_at": 2}], max_tokens=3),
        turn("y", forks=[{"child": "f", "background": True}], delay=5, tools=[{"a": [1]}]),
        turn({"role": "user", "content": [{"type": "text", "text": "z"}]}, forks=["g"]),
        pre_session_spawns=["w"],
    ),
    session("w", turn("x"), context_mode="message_array_with_responses"),
    session("f", turn("x")),
    session("g", turn("x")),
]
MOONCAKE = [
    {"timestamp": 5, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]},
    {"session_id": "a", "input_length": 10},
    {"session_id": "a", "input_length": 10, "delay": 5},
    {"messages": [system("s"), user("x")], "tools": [{"a": [1]}]},
    {"payload": {"messages": [user("x")], "max_tokens": 4}, "timestamp": 7},
    {"payload": {"prompt": "x"}},
    {"text_input": "x"},
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2000)
    | st.sampled_from([10**9, 10**30, -(10**30), "\ud800", "w", "root"])
    | st.floats()
    | st.text(max_size=5),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "child", "children", "spawns"]), some, max_size=3
        )
    ),
    max_leaves=6,
)


def read_or_told(path):
    """What is read; nothing, where the error says which lines are broken."""
    try:
        return read_trace(path, VOCAB).runs
    except TraceError as caught:
        error = caught
    assert told(error)
    return ()


@st.composite
def mutated(draw, value):
    """A value of which something, anywhere, is replaced or missing."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(values)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    copy = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = draw(mutated(value[key]))
    return copy


@pytest.mark.parametrize("lines", [DAG, MOONCAKE], ids=["dag", "mooncake"])
@given(data=st.data())
def test_whatever_is_in_a_trace_it_is_read_or_told_of(tmp_path_factory, lines, data):
    lines = [
        data.draw(mutated(line)) if data.draw(st.integers(0, 2)) == 0 else line for line in lines
    ]
    texts = [json.dumps(line) for line in lines]
    if data.draw(st.integers(0, 4)) == 0:
        place = data.draw(st.integers(0, len(texts) - 1))
        texts[place] = texts[place][: data.draw(st.integers(1, 40))]
    path = tmp_path_factory.getbasetemp() / "trace.jsonl"
    path.write_text("\n".join(texts))
    for run in read_or_told(path):
        assert run.calls
        assert run.start_s >= 0
        for number, call in enumerate(run.calls):
            assert run.prompt_lens[number] > 0
            assert call.num_fixed <= run.prompt_lens[number]
            assert 0 <= call.pause_s < 1e15
            assert all(before < number for before in call.after)
            assert all(part < number for part in call.parts if isinstance(part, int))


@given(broken=st.sets(st.integers(1, 30), min_size=1), is_dag=st.booleans())
def test_every_broken_line_is_told_of(tmp_path_factory, broken, is_dag):
    path = tmp_path_factory.getbasetemp() / "trace.jsonl"
    good = [session(f"s{i}", turn("x")) if is_dag else {"input_length": 5} for i in range(1, 32)]
    bad = {"session_id": "a", "turns": 3} if is_dag else {"input_length": "x"}
    lines = [bad if i in broken else line for i, line in enumerate(good, 1)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(TraceError) as error:
        read_trace(path, VOCAB)
    assert told(error.value) == broken
