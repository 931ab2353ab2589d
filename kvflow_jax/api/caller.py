"""Calls of an engine that return text: what ``LLM`` and ``WorkflowRun`` have in common."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from kvflow_jax.api.completion import Collector, Completion, Stream
from kvflow_jax.api.prompts import (
    Conversation,
    Prompt,
    PromptEncoder,
    list_conversations,
    list_prompts,
)
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints

if TYPE_CHECKING:
    from tqdm import tqdm

Params = SamplingParams | Sequence[SamplingParams]  # for all prompts, or one for each prompt


class Caller:
    """Submits prompts and waits for their completions. Any thread may call its methods.

    They are the methods of ``LLM`` without its overloads; see there for arguments and errors.

    Args:
        tokenizer: of the engine's model; None: prompts are token ids.
    """

    def __init__(self, engine: EngineThread, tokenizer: Tokenizer | None) -> None:
        self.engine = engine
        self._encoder = PromptEncoder(tokenizer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params,
        *,
        hints: Hints | None,
        progress: bool,
    ) -> Completion | list[Completion]:
        """Return a completion for one prompt, a list of them for a list."""
        listed, is_single = list_prompts(prompts)
        by_prompt = zip(listed, _broadcast(params, len(listed)), strict=True)
        specs = [self._encoder.text(prompt, own, hints) for prompt, own in by_prompt]
        completions = self._complete(specs, progress=progress and not is_single)
        return completions[0] if is_single else completions

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: Params,
        *,
        hints: Hints | None,
        progress: bool,
    ) -> Completion | list[Completion]:
        """Return a completion for one conversation, a list of them for a list."""
        listed, is_single = list_conversations(messages)
        by_conversation = zip(listed, _broadcast(params, len(listed)), strict=True)
        specs = [self._encoder.chat(talk, own, hints) for talk, own in by_conversation]
        completions = self._complete(specs, progress=progress and not is_single)
        return completions[0] if is_single else completions

    def stream(self, prompt: Prompt, params: SamplingParams, *, hints: Hints | None) -> Stream:
        """Submit one prompt; return its outputs as they come."""
        return Stream(self.engine, self._encoder.text(prompt, params, hints))

    def stream_chat(
        self, messages: Conversation, params: SamplingParams, *, hints: Hints | None
    ) -> Stream:
        """Submit one conversation; return its outputs as they come."""
        return Stream(self.engine, self._encoder.chat(messages, params, hints))

    def _complete(self, specs: Sequence[RequestSpec], *, progress: bool) -> list[Completion]:
        """Submit all requests or none, wait for all, and return their completions in order."""
        for spec in specs:
            self.engine.check(spec)
        last: queue.SimpleQueue[Output] = queue.SimpleQueue()
        outputs: list[list[Output]] = [[] for _ in specs]
        request_ids: list[int] = []
        bar = _progress_bar(len(specs)) if progress and specs else None
        try:
            for spec, collected in zip(specs, outputs, strict=True):
                request_ids.append(self.engine.submit(spec, Collector(collected, last)))
            for _ in specs:
                if (output := last.get()).error is not None:
                    raise output.error
                if bar is not None:
                    bar.update()
        except BaseException:
            # An error or Ctrl-C. Aborting a finished request has no effect.
            for request_id in request_ids:
                self.engine.abort(request_id)
            self.engine.settle()
            raise
        finally:
            if bar is not None:
                bar.close()
        return [Completion.of(collected) for collected in outputs]


def _broadcast(params: Params, num_prompts: int) -> list[SamplingParams]:
    """Return one SamplingParams for each prompt."""
    if isinstance(params, SamplingParams):
        return [params] * num_prompts
    if not isinstance(params, Sequence):
        raise InvalidRequestError(
            f"params must be SamplingParams, or a list of one for each prompt, got {params!r:.80}",
            "params",
        )
    if len(params) != num_prompts:
        raise InvalidRequestError(
            f"{num_prompts} prompts but {len(params)} sampling params", "params"
        )
    return list(params)


def _progress_bar(total: int) -> tqdm[NoReturn]:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Generating", unit="prompt")
