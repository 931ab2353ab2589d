"""Reading hints: whatever is sent, something comes of it or nothing does, never an error."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.hints import FixedPrefix, HintParser, Hints
from tests.models import tiny

FIELDS = (
    *("workflow_id", "agent_id", "session_id", "session_final", "graph_id", "step_graph"),
    *("steps_to_execution", "next_agents", "reuse_hint", "cache_ttl_ms", "fixed_prefix"),
    *("priority", "nodes", "edges", "source", "target", "unit", "end", "probability"),
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
def test_anything_can_be_read(data):
    parser = HintParser(data)
    hints = parser.parse()
    assert hints.ttl_s is None or 0 <= hints.ttl_s <= 24 * 3600
    assert all(0 <= steps <= 1 << 16 for steps in hints.steps_to_execution.values())
    assert all(0 <= chance <= 1 for chance in hints.next_agents.values())
    assert parser.fixed_prefix is None or parser.fixed_prefix.end >= 0
    if not isinstance(data, dict):
        assert hints.is_empty


def test_what_makes_sense_is_not_clipped():
    parser = HintParser(
        {
            "agent_id": "coder",
            "reuse_hint": "discard",
            "cache_ttl_ms": 500,
            "steps_to_execution": 2,
            "fixed_prefix": {"end": 3},
            "priority": -4,
            "step_id": "unknown to us",
            "session_id": None,
        }
    )
    assert not parser.parse().is_clipped
    assert parser.parse().steps_to_execution == {"coder": 2.0}
    assert (parser.fixed_prefix, parser.priority) == (FixedPrefix("token", 3), -4)
    assert HintParser({"cache_ttl_ms": 10**12}).parse().ttl_s == 24 * 3600
    assert HintParser({"cache_ttl_ms": 10**12}).parse().is_clipped


def test_a_fixed_prefix_is_no_longer_than_the_prompt():
    assert Hints(agent_id="a").with_fixed(4, 9) == Hints(agent_id="a", num_fixed=4)
    assert Hints().with_fixed(12, 9) == Hints(num_fixed=9, is_clipped=True)
    assert Hints(num_fixed=2).with_fixed(None, 9) == Hints()


def test_equal_graphs_are_one_object_and_few_are_held():
    store = GraphStore(max_parts=6)  # a graph of two nodes and an edge counts 4
    one = store.graph({"edges": [{"source": "a", "target": "b"}], "name": "x"})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is one
    store.graph({"nodes": ["other"]})
    assert store.graph({"name": "x", "edges": [{"target": "b", "source": "a"}]}) is one
    store.graph({"nodes": ["another"]})
    assert len(store) == 2
    store.graph({"nodes": ["c", "d", "e", "f", "g", "h"]})
    assert len(store) == 1
    for bad in (5, {"nodes": [5]}, {"nodes": {1, 2}}):
        with pytest.raises(InvalidRequestError):
            store.graph(bad)
    assert len(store) == 1


def test_threads_that_ask_at_once_get_one_graph():
    store, found = GraphStore(), []
    data = {"edges": [{"source": f"n{i}", "target": f"n{i + 1}"} for i in range(300)]}
    start = threading.Barrier(4)

    def ask():
        start.wait()
        found.append(store.graph(json.loads(json.dumps(data))))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


SYSTEM = {"role": "system", "content": "You plan."}
USER = {"role": "user", "content": "the task"}


def test_the_prefix_of_a_chat_ends_with_its_system_messages():
    tokenizer = Tokenizer(tiny.byte_level_tokenizer())
    prompt = tokenizer.apply_chat_template([SYSTEM, SYSTEM, USER])
    length = chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt)
    written = "<s>system: You plan.</s>" * 2
    # The token that opens the next message is none of it.
    assert tokenizer.decode(prompt[:length], skip_special_tokens=False) == written
    assert chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 1) == length / 2
    assert chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 0) == 0
    whole = chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 9)
    assert length < whole < len(prompt)
    assert chat_prefix_len(tokenizer, [USER, SYSTEM], prompt) is None


def test_a_template_may_refuse_system_messages_alone():
    template = (
        "{% if messages[-1].role == 'system' %}{{ raise_exception('no user') }}{% endif %}"
        + tiny.CHAT_TEMPLATE
    )
    tokenizer = Tokenizer(tiny.byte_level_tokenizer(template))
    prompt = tokenizer.apply_chat_template([SYSTEM, USER])
    assert chat_prefix_len(tokenizer, [SYSTEM, USER], prompt) is None
    assert chat_prefix_len(tokenizer, [SYSTEM, USER], prompt, 2) is not None
