"""Hints of requests: any JSON can be parsed, and an invalid field is ignored."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.hints import MAX_STEPS, FixedPrefix, HintParser, Hints, Reuse

FIELDS = (
    *("workflow_id", "agent_id", "session_id", "session_final", "graph_id", "step_graph"),
    *("steps_to_execution", "next_agents", "reuse_hint", "cache_ttl_ms", "fixed_prefix"),
    *(
        "priority",
        "prefetch",
        "deadline_ms",
        "nodes",
        "edges",
        "source",
        "target",
        "unit",
        "end",
        "probability",
    ),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**350, max_value=10**351)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["keep", "neutral", "discard", "token", "message", "x" * 300])
)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6)
    ),
)


@given(st.dictionaries(st.sampled_from(FIELDS), ANY_JSON) | ANY_JSON)
def test_any_json_can_be_parsed(data):
    parser = HintParser(data)
    hints = parser.parse()
    assert hints.ttl_s is None or 0 <= hints.ttl_s <= 24 * 3600
    assert all(0 <= steps <= 1 << 16 for steps in hints.steps_to_execution.values())
    assert all(0 <= chance <= 1 for chance in hints.next_agents.values())
    assert parser.fixed_prefix is None or parser.fixed_prefix.end >= 0
    if not isinstance(data, dict):
        assert hints.is_empty


def test_valid_fields_are_not_clipped():
    parser = HintParser(
        {
            "agent_id": "coder",
            "reuse_hint": "keep",
            "cache_ttl_ms": 500,
            "steps_to_execution": 2,
            "fixed_prefix": {"end": 3},
            "prefetch": False,
            "priority": -4,
            "session_id": None,
            "step_id": None,
        }
    )
    assert not parser.parse().is_clipped
    assert parser.parse().prefetch is False
    assert parser.parse().steps_to_execution == {"coder": 2.0}
    assert (parser.fixed_prefix, parser.priority) == (FixedPrefix("token", 3), -4)
    assert HintParser({"cache_ttl_ms": 10**12}).parse().ttl_s == 24 * 3600
    assert HintParser({"cache_ttl_ms": 10**12}).parse().is_clipped


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_id", "s1"),
        ("step_index", 0),
        ("total_steps", 3),
        ("parent_step_id", "s0"),
        ("children_step_ids", []),
        ("deadline_ms", 0),
        ("expected_output_tokens", 9),
        ("osl", 9),
        ("state", "tool"),
        ("tool_name", ""),
        ("expected_tool_duration_ms", 5.0),
        ("shared_prefix_hash", "x"),
        ("agentId", "coder"),
    ],
)
def test_a_field_that_nothing_reads_is_not_passed_over_in_silence(name, value):
    hints = HintParser({"agent_id": "coder", name: value}).parse()
    assert hints == Hints(agent_id="coder", is_clipped=True)
    assert HintParser({name: value}).parse().is_empty


@pytest.mark.parametrize(
    ("fields", "has_unused"),
    [
        ({"workflow_id": "w", "agent_id": "a", "prefetch": False}, False),
        ({"agent_id": "a", "prefetch": True}, True),
        ({"workflow_id": "w", "session_final": True}, False),
        ({"session_id": "s", "session_final": True}, False),
        ({"agent_id": "a", "session_final": True}, True),
        ({"session_id": "s", "cache_ttl_ms": 5}, False),
        ({"session_id": "s", "cache_ttl_ms": 5, "session_final": True}, True),
        ({"session_id": "s", "reuse_hint": "keep", "session_final": True}, True),
        ({"session_id": "s", "reuse_hint": "discard", "session_final": True}, False),
        ({"reuse_hint": "keep", "cache_ttl_ms": 5}, False),
        ({"reuse_hint": "discard", "cache_ttl_ms": 5}, True),
        ({"session_id": "s", "parent_session_id": "p"}, False),
        ({"session_id": "s", "parent_session_id": "s"}, True),
        ({"workflow_id": "w", "steps_to_execution": {"a": 1}}, True),
        ({"agent_id": "a", "next_agents": ["b"]}, True),
        ({"agent_id": "a", "step_graph": {"nodes": ["a"]}}, True),
    ],
)
def test_fields_need_others_and_may_not_contradict_them(fields, has_unused):
    hints = HintParser(fields).parse()
    assert hints.has_unused == has_unused
    assert not hints.is_clipped


def test_a_prefix_cannot_be_fixed_in_what_is_discarded():
    fields = {"agent_id": "a", "fixed_prefix": {"end": 3}}
    assert not HintParser(fields).parse().is_clipped
    assert HintParser({**fields, "reuse_hint": "discard"}).parse().is_clipped
    # The length of the system messages is measured by the server: it is not a hint of the client.
    assert not Hints(agent_id="a", num_fixed=3, reuse=Reuse.DISCARD).has_unused


IDENTITY = Hints(workflow_id="root", agent_id="role", session_id="talk", session_generation=1)


def test_fields_without_a_caller_belong_to_the_identity():
    parse = HintParser({"session_generation": 2}, identity=IDENTITY).parse
    assert parse() == replace(IDENTITY, session_generation=2)
    fields = {"session_final": True, "parent_session_id": "p"}
    given = HintParser(fields, identity=IDENTITY, root_session="root").parse()
    assert given == replace(IDENTITY, session_final=True, parent_session_id="p")
    assert not given.has_unused


def test_the_run_of_hints_that_name_none_is_the_root_session():
    fields = {"agent_id": "a", "step_graph": {"nodes": ["a"]}}
    hints = HintParser(fields, identity=IDENTITY, root_session="root").parse()
    assert (hints.workflow_id, hints.agent_id, hints.session_id) == ("root", "a", None)
    assert not hints.has_unused
    named = HintParser({**fields, "workflow_id": "w"}, root_session="root").parse()
    assert named.workflow_id == "w"
    assert HintParser(fields, root_session="x" * 300).parse().has_unused


def test_a_fixed_prefix_is_cut_to_the_prompt():
    assert Hints(agent_id="a").with_fixed(4, 9) == Hints(agent_id="a", num_fixed=4)
    assert Hints().with_fixed(12, 9) == Hints(num_fixed=9, is_clipped=True)
    assert Hints(num_fixed=2).with_fixed(None, 9) == Hints()


def test_next_agents_are_names_or_records():
    hints = HintParser(
        {"next_agents": ["a", {"agent_id": "b", "probability": 0.25}, {"agent_id": "c"}]}
    ).parse()
    assert hints.next_agents == {"a": 1.0, "b": 0.25, "c": 1.0}
    assert not hints.is_clipped


@pytest.mark.parametrize(
    "item", [3, "", {}, {"agent_id": "a", "probability": 2}, {"agent_id": "a", "probability": "x"}]
)
def test_an_invalid_next_agent_is_ignored_and_the_others_count(item):
    hints = HintParser({"next_agents": [item, "b"]}).parse()
    assert hints.next_agents == {"b": 1.0}
    assert hints.is_clipped


def test_steps_are_whole_and_bounded():
    hints = HintParser({"steps_to_execution": {"a": 3, "b": 2.9, "c": -1, "d": 1e9}}).parse()
    assert hints.steps_to_execution == {"a": 3.0, "b": 2.0, "c": 0.0, "d": float(MAX_STEPS)}
    assert hints.is_clipped


def test_an_inline_graph_is_frozen_and_an_invalid_or_empty_one_ignored():
    edges = [{"source": "a", "target": "b"}]
    graph = HintParser({"step_graph": {"edges": edges}}).parse().graph
    assert graph is not None
    assert graph.names == ("a", "b")
    for invalid in ({"edges": 3}, {}, "a"):
        hints = HintParser({"step_graph": invalid}).parse()
        assert hints.graph is None
        assert hints.is_clipped


def test_requests_that_share_a_store_share_their_graphs():
    store, data = GraphStore(), {"step_graph": {"nodes": ["a"]}}
    assert HintParser(data, store).parse().graph is HintParser(dict(data), store).parse().graph


@pytest.mark.parametrize(
    ("hints", "is_empty"),
    [
        (Hints(), True),
        (Hints(num_fixed=3), True),
        (Hints(agent_id="a"), False),
        (Hints(session_id="s"), False),
        (Hints(reuse=Reuse.KEEP), False),
    ],
)
def test_hints_are_empty_if_they_name_nothing(hints, is_empty):
    assert hints.is_empty == is_empty


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workflow_id", ["x"]),
        ("agent_id", 1),
        ("session_id", [1]),
        ("tenant", [1]),
        ("num_fixed", "x"),
        ("num_fixed", 1.5),
        ("num_fixed", True),
        ("num_fixed", -1),
        ("reuse", "keep"),
        ("ttl_s", "soon"),
        ("prefetch", 1),
        ("graph", "a graph"),
        ("steps_to_execution", {"b": "x"}),
        ("next_agents", ["b"]),
        ("next_agents", {"b": float("nan")}),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error_that_names_it(name, value):
    Hints(workflow_id="w", agent_id="a", num_fixed=3, ttl_s=1.0).check_types()
    with pytest.raises(InvalidRequestError, match=f"hints.{name} must be") as raised:
        Hints(**{name: value}).check_types()
    assert raised.value.param == f"hints.{name}"


@pytest.mark.parametrize("field", ["steps_to_execution", "next_agents"])
def test_the_names_of_agents_have_a_limit_of_characters(field):
    names = [f"{i:03}{'x' * 253}" for i in range(300)]
    data = {field: names if field == "next_agents" else dict.fromkeys(names, 1)}
    hints = HintParser(data).parse()
    assert list(getattr(hints, field)) == names[:256]
    assert hints.is_clipped


@pytest.mark.parametrize("generation", [-1, 1 << 40, 10**400, 1.0, True, "1", []])
def test_a_generation_is_a_small_integer(generation):
    hints = HintParser({"session_id": "s", "session_generation": generation}).parse()
    assert hints.session_generation is None
    assert hints.is_clipped
    assert HintParser({"session_id": "s", "session_generation": 3}).parse().session_generation == 3


def test_parents_and_generations_need_a_session():
    for field, value in (("parent_session_id", "p"), ("session_generation", 1)):
        assert HintParser({"agent_id": "a", field: value}).parse().has_unused
        assert not HintParser({"session_id": "s", field: value}).parse().has_unused
        with pytest.raises(InvalidRequestError, match=field):
            Hints(session_id="s", **{field: -1}).check_types()


def test_an_identity_fills_hints_that_name_no_one():
    identity = Hints("w", "a", "s", True, "p", 2)
    for data in (None, {}, {"priority": 1}):
        hints = HintParser(data, session_id="key", identity=identity).parse()
        assert (hints.workflow_id, hints.agent_id, hints.session_id) == ("w", "a", "s")
        assert (hints.session_final, hints.parent_session_id) == (True, "p")
        assert hints.session_generation == 2
    hints = HintParser({"agent_id": "b"}, session_id="key", identity=identity).parse()
    assert (hints.agent_id, hints.session_id, hints.parent_session_id) == ("b", "key", None)
    assert not hints.session_final
