"""The page of docs says what is played here."""

from __future__ import annotations

import pytest

from tests.agents.agent import DONE, SUBAGENT_DONE, SUBTASK, SUMMARY, TASK, Agent, Call
from tests.agents.agents import AGENTS, MODEL, WITH_COMPACTION, WITH_SUBAGENTS
from tests.support.doc_blocks import ROOT, SERVER

PAGE = (ROOT / "docs" / "agents.md").read_text()
# What only a run without a terminal, network or user needs.
FOR_THE_RUN = {
    *("MSWEA_CONFIGURED", "MSWEA_SILENT_STARTUP", "LITELLM_LOCAL_MODEL_COST_MAP"),
    *("OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_AUTOUPDATE"),
    *("CONTINUE_TELEMETRY_ENABLED", "PI_OFFLINE"),
}

each_agent = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)


def as_documented(text: str) -> str:
    return text.replace("{url}", SERVER).replace(MODEL, "my-model")


@each_agent
def test_the_page_has_the_version_and_the_configuration(agent: Agent) -> None:
    assert f"{agent.registry} `{agent.package}` {agent.version}" in PAGE
    for text in agent.files.values():
        assert as_documented(text) in PAGE
    for name, value in agent.environment.items():
        assert name in FOR_THE_RUN or f"{name}={as_documented(value)}" in PAGE
    for arguments in agent.before:
        assert as_documented(" ".join((agent.program, *arguments))) in PAGE


@each_agent
def test_the_model_answers_by_the_number_of_results(agent: Agent) -> None:
    prompt = f"<tools></tools>{TASK}"
    for call in agent.calls:
        assert agent.answer(prompt, "/work") == call.text("/work")
        prompt += "<tool_response>result</tool_response>"
    assert agent.answer(prompt, "/work") == DONE


@pytest.mark.parametrize("agent", WITH_SUBAGENTS, ids=lambda agent: agent.name)
def test_a_subagent_is_told_apart_by_what_it_is_asked(agent: Agent) -> None:
    prompt = f"<tools></tools>{SUBTASK}"
    for call in agent.subagent_calls:
        assert agent.answer(prompt, "/work") == call.text("/work")
        prompt += "<tool_response>result</tool_response>"
    assert agent.answer(prompt, "/work") == SUBAGENT_DONE
    of_parent = f"<tools></tools>{TASK}{SUBTASK}"
    assert agent.answer(of_parent, "/work") == agent.calls[0].text("/work")


@pytest.mark.parametrize("agent", WITH_COMPACTION, ids=lambda agent: agent.name)
def test_a_session_is_summed_up_once_and_goes_on_from_there(agent: Agent) -> None:
    assert SUMMARY in agent.answer(f"{TASK}{agent.compaction}", "/work")
    prompt = f"<tools></tools>{TASK}{SUMMARY}"
    for call in agent.calls_after_summary:
        assert agent.answer(prompt, "/work") == call.text("/work")
        prompt += "<tool_response>result</tool_response>"
    assert agent.answer(prompt, "/work") == DONE


def test_a_call_names_the_last_subagent() -> None:
    first, last = ("0" * 36, "1" * 36)
    prompt = f'{{"agent_id":"{first}"}} {{"agent_id":"{last}"}}'
    assert last in Call("wait", {"targets": ["{agent_id}"]}).text("/work", prompt)


def test_a_request_beside_the_task_gets_a_title() -> None:
    for prompt in (TASK, "<tools></tools>Name this"):
        assert "<tool_call>" not in AGENTS[0].answer(prompt, "/work")
