from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax.serve.chat import read_chat_tools
from kvflow_jax.serve.chat_tools import ModelTools, ToolTemplate
from kvflow_jax.serve.prefix_tokens import PrefixTemplate, PrefixTokens
from kvflow_jax.serve.schemas import ChatRequest
from tests.serve.agent_requests import CHAT_TOOLS, opencode
from tests.support.scripted_runner import scripted_server, scripted_tokenizer

SYSTEM = {"role": "system", "content": "You are an agent."}
TOKENIZER = scripted_tokenizer()


class CountingTemplate(ToolTemplate):
    num_calls = 0

    def apply_chat_template(self, *args: Any, **fields: Any) -> list[int]:
        self.num_calls += 1
        return super().apply_chat_template(*args, **fields)


def template_of(tools: Any = CHAT_TOOLS) -> CountingTemplate:
    body = ChatRequest(messages=[SYSTEM], tools=tools)
    return CountingTemplate(TOKENIZER, read_chat_tools(body, ModelTools.of(TOKENIZER, "auto")))


@pytest.mark.parametrize(
    "change", [{"tenant": "other"}, {"tools": []}, {"text": "You plan."}, {"other": 1}]
)
def test_a_prefix_is_tokenized_once_for_each_tenant_tools_texts_and_arguments(
    change: dict[str, Any],
) -> None:
    tokens = PrefixTokens()

    def tokenize(
        tenant: str = "one", tools: Any = CHAT_TOOLS, text: str = "You are.", **args: Any
    ) -> int:
        template = template_of(tools)
        message = {"role": "system", "content": text}
        found = PrefixTemplate(template, tokens, tenant).apply_chat_template([message], **args)
        num_calls = template.num_calls
        assert found == template.apply_chat_template([message], **args)
        return num_calls

    assert [tokenize(), tokenize(), tokenize(**change), tokenize(**change)] == [1, 0, 1, 0]


def test_prefixes_are_dropped_beyond_the_budget() -> None:
    tokens = PrefixTokens(max_bytes=1000)
    for key in (b"a", b"b", b"c"):
        tokens.put("one", key, range(50))
    assert tokens.get("one", b"a") is None
    assert tokens.get("one", b"c") == [*range(50)]
    assert tokens.usage.num_bytes <= 1000


def test_each_turn_of_a_session_has_the_fixed_prefix_of_its_agent() -> None:
    sent = opencode()
    with scripted_server() as server, httpx.Client(base_url=server.url, timeout=60) as http:
        server.script("a", "b", "c")
        turns = [http.post(sent.path, headers=sent.headers, json=sent.body) for _ in range(3)]
        fixed = [turn.json()["kvflow"]["hint_status"] for turn in turns]
        page = http.get("/metrics").text
    assert fixed == ["applied"] * 3
    (kept,) = [line for line in page.splitlines() if 'state="prefix_tokens"' in line][:1]
    assert float(kept.split()[-1]) > 0
