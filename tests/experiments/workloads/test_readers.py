"""Traces: formats, and the lines that errors name."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.workloads.readers import TraceError, read_trace
from tests.experiments.workloads.trace_lines import session, system, turn, user

VOCAB = 1000


def test_line_separators_within_json_strings_do_not_split_lines(tmp_path):
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


def test_a_truncated_line_is_the_only_one_named(read):
    lines = [json.dumps(session(f"s{i}", turn("x" * 40))) for i in range(3)]
    lines += [json.dumps(session("root", turn("x", spawns=["s0", "s1", "s2"])))]
    for index in range(4):
        cut = [line[:30] if i == index else line for i, line in enumerate(lines)]
        with pytest.raises(TraceError, match=rf": line {index + 1}: not JSON[^;]*$"):
            read(*cut)


def named_lines(error):
    """Return the numbers of the lines that an error names."""
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


def read_or_refuse(path):
    """Return the runs, or nothing after an error that names lines."""
    try:
        return read_trace(path, VOCAB).runs
    except TraceError as caught:
        error = caught
    assert named_lines(error)
    return ()


@st.composite
def mutated(draw, value):
    """Return the value with one part, at any depth, replaced or removed."""
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
def test_any_trace_is_read_or_refused(tmp_path_factory, lines, data):
    lines = [
        data.draw(mutated(line)) if data.draw(st.integers(0, 2)) == 0 else line for line in lines
    ]
    texts = [json.dumps(line) for line in lines]
    if data.draw(st.integers(0, 4)) == 0:
        index = data.draw(st.integers(0, len(texts) - 1))
        texts[index] = texts[index][: data.draw(st.integers(1, 40))]
    path = tmp_path_factory.getbasetemp() / "trace.jsonl"
    path.write_text("\n".join(texts))
    for run in read_or_refuse(path):
        assert run.calls
        assert run.start_s >= 0
        for number, call in enumerate(run.calls):
            assert run.prompt_lens[number] > 0
            assert call.num_fixed <= run.prompt_lens[number]
            assert 0 <= call.pause_s < 1e15
            assert all(before < number for before in call.after)
            assert all(part < number for part in call.parts if isinstance(part, int))


@given(broken=st.sets(st.integers(1, 30), min_size=1), is_dag=st.booleans())
def test_every_broken_line_is_named(tmp_path_factory, broken, is_dag):
    path = tmp_path_factory.getbasetemp() / "trace.jsonl"
    good = [session(f"s{i}", turn("x")) if is_dag else {"input_length": 5} for i in range(1, 32)]
    bad = {"session_id": "a", "turns": 3} if is_dag else {"input_length": "x"}
    lines = [bad if i in broken else line for i, line in enumerate(good, 1)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(TraceError) as error:
        read_trace(path, VOCAB)
    assert named_lines(error.value) == broken
