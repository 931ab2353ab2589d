"""A run names its agents to the engine, reports progress, and ends."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from kvflow_jax.api.caller import Caller
from kvflow_jax.api.prompts import PromptEncoder
from kvflow_jax.api.workflow_run import TENANT, WorkflowRun
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import EngineClosedError, InvalidRequestError
from kvflow_jax.models.control_tokens import ControlTokens
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints, HintStatus
from kvflow_jax.workflow.workflow import Workflow
from tests.support.agent_cycle import KVFLOW
from tests.support.token_runner import make_engine

PARAMS = SamplingParams(max_tokens=3)
STATS = RequestStats(1, 0, 0, 1, 1, 0, None, 0.0, 0.0, 0.0, 0.0, 9)
MESSAGES = [{"role": "user", "content": "Plan this."}]


class CharTokenizer:
    control_tokens = ControlTokens(Backend(BPE()), "")

    def encode(self, text):
        return list(map(ord, text))

    def apply_chat_template(self, messages, **kwargs):
        return self.encode("".join(message["content"] for message in messages))


class RecordingEngine:
    def __init__(self):
        self.log = []
        self.specs = []
        self.advanced = [["stranger"]]  # results of advance_run, the last one first
        self.is_closed = False

    def begin_run(self, tenant, workflow_id, graph):
        self.log.append(("begin", tenant, workflow_id, graph))

    def advance_run(self, tenant, workflow_id, completed, running):
        self.log.append(("advance", tenant, workflow_id, completed, running))
        return self.advanced.pop()

    def check(self, spec):
        pass

    def submit(self, spec, on_output):
        self.specs.append(spec)
        on_output(Output(0, "done", (), FinishReason.STOP, STATS))
        return 0

    def end_run(self, tenant, workflow_id):
        self.log.append(("end", tenant, workflow_id))
        if self.is_closed:
            raise EngineClosedError("closed")


@pytest.fixture
def caller():
    return Caller(RecordingEngine(), PromptEncoder(CharTokenizer()))


def plan_and_code():
    return Workflow().edge("planner", "coder")


def test_a_run_begins_with_its_graph_and_ends_with_its_block(caller):
    with WorkflowRun(caller, plan_and_code(), "named") as run:
        assert run.workflow_id == "named"
        ((event, tenant, workflow_id, graph),) = caller.engine.log
        assert (event, tenant, workflow_id) == ("begin", TENANT, "named")
        assert set(graph.names) == {"planner", "coder"}
    run.end()  # again
    assert caller.engine.log[1:] == [("end", TENANT, "named")]


def test_runs_without_a_name_have_different_ones(caller):
    first, second = WorkflowRun(caller), WorkflowRun(caller)
    assert first.workflow_id != second.workflow_id
    assert caller.engine.log[0][-1] is None  # no graph


def test_every_call_has_the_hints_of_its_run_and_agent(caller):
    run = WorkflowRun(caller, plan_and_code(), "named")
    answers = [
        run.chat("coder", MESSAGES, PARAMS, progress=False).text,
        run.generate("coder", "hello", PARAMS, progress=False).text,
        next(run.stream("coder", "hello", PARAMS)).text,
        next(run.stream_chat(agent="coder", messages=MESSAGES, params=PARAMS)).text,
        *(c.text for c in run.generate("coder", ["hello", [1, 2]], PARAMS, progress=False)),
    ]
    assert answers == ["done"] * 6
    for spec in caller.engine.specs:
        assert spec.params is PARAMS
        assert (spec.hints.workflow_id, spec.hints.agent_id) == ("named", "coder")
        assert set(spec.hints.graph.names) == {"planner", "coder"}


def test_further_hints_are_kept_except_for_the_runs_own(caller):
    run = WorkflowRun(caller, workflow_id="named")
    given = Hints(session_id="s", num_fixed=3, workflow_id="other", agent_id="other")
    next(run.stream("coder", "hello", PARAMS, hints=given))
    (hints,) = (spec.hints for spec in caller.engine.specs)
    assert (hints.session_id, hints.num_fixed) == ("s", 3)
    assert (hints.workflow_id, hints.agent_id) == ("named", "coder")


def test_the_methods_of_a_run_say_what_they_do():
    for name in ("chat", "generate", "stream", "stream_chat"):
        method = getattr(WorkflowRun, name)
        assert method.__name__ == name
        assert f"LLM.{name}" in method.__doc__


def test_progress_without_calls_is_reported(caller):
    run = WorkflowRun(caller, plan_and_code(), "named")
    unknown = run.advance(completed=["planner", "stranger"], running=iter(["coder"]))
    assert unknown == ["stranger"]
    assert caller.engine.log[1:] == [
        ("advance", TENANT, "named", ["planner", "stranger"], ["coder"])
    ]


def test_a_run_that_has_reached_its_end_begins_anew(caller):
    run = WorkflowRun(caller, plan_and_code(), "named")
    caller.engine.advanced = [[], None]
    assert run.advance(completed=["planner"]) == []
    assert [event[0] for event in caller.engine.log] == ["begin", "advance", "begin", "advance"]


def test_a_run_can_end_after_its_engine(caller):
    run = WorkflowRun(caller)
    caller.engine.is_closed = True
    run.end()
    assert caller.engine.log[-1][0] == "end"


def test_a_run_that_is_over_takes_no_calls(caller):
    run = WorkflowRun(caller, plan_and_code())
    run.end()
    calls = [lambda: run.advance(["planner"])]
    calls += [
        lambda call=call: call("planner", "hello", PARAMS)
        for call in (run.chat, run.generate, run.stream, run.stream_chat)
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="this run is over"):
            call()


@pytest.mark.parametrize("workflow", ["planner -> coder", {"nodes": ["planner"]}, 5])
def test_only_a_workflow_can_be_run(caller, workflow):
    with pytest.raises(InvalidRequestError, match="must be a Workflow"):
        WorkflowRun(caller, workflow)
    assert caller.engine.log == []


def test_a_workflow_without_nodes_is_refused(caller):
    with pytest.raises(InvalidRequestError, match="at least one node"):
        WorkflowRun(caller, Workflow())


@pytest.mark.parametrize("name", ["", "x" * 257, 5, None, ["planner"]])
def test_names_are_strings_of_limited_length(caller, name):
    run = WorkflowRun(caller)
    with pytest.raises(InvalidRequestError, match="agent must be") as error:
        run.generate(name, "hello", PARAMS)
    assert error.value.param == "agent"
    with pytest.raises(InvalidRequestError, match="running must be"):
        run.advance(running=[name])
    if name is not None:
        with pytest.raises(InvalidRequestError, match="workflow_id must be"):
            WorkflowRun(caller, workflow_id=name)


def test_one_agent_is_no_list_of_agents(caller):
    with pytest.raises(InvalidRequestError, match="completed must be a list"):
        WorkflowRun(caller).advance("planner")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompts": 5}, "prompts"),
        ({"prompts": [0.5]}, "prompt"),
        ({"params": "greedy"}, "params"),
        ({"hints": {"session_id": "s"}}, "hints"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named_and_the_run_goes_on(change, param):
    thread = EngineThread(make_engine(cache=KVFLOW))
    with WorkflowRun(Caller(thread, PromptEncoder(None)), plan_and_code()) as run:
        call = {"prompts": [1, 2, 3], "params": PARAMS, **change}
        with pytest.raises(InvalidRequestError) as raised:
            run.generate("planner", **call)
        assert raised.value.param == param
        completion = run.generate("planner", [1, 2, 3], PARAMS)
        assert completion.hint_status is HintStatus.APPLIED
    thread.check_integrity()
    thread.close()
