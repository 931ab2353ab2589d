"""Calls of an engine that return text."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, overload

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
from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints

if TYPE_CHECKING:
    from tqdm import tqdm

Params = SamplingParams | Sequence[SamplingParams]  # for all prompts, or one for each prompt


class Caller:
    """Submits prompts and waits for their completions. Any thread may call its methods.

    ``LLM`` is one; a ``WorkflowRun`` calls through one for each agent.

    Args:
        complete_hints: called once for each call with its hints; returns those of its requests.
    """

    def __init__(
        self,
        engine: EngineThread,
        encoder: PromptEncoder,
        complete_hints: Callable[[Hints | None], Hints | None] = lambda hints: hints,
    ) -> None:
        self.engine, self.encoder = engine, encoder
        self._complete_hints = complete_hints

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: Prompt,
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        params: Params = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Continue one prompt, or a list of prompts as a batch.

        Args:
            prompts: a text, a list of token ids, or a list of either.
            params: sampling parameters for all prompts, or a list with one for each prompt.
            hints: workflow hints for each request; ``run`` sets them for the agents of a workflow.
            progress: show a progress bar for a list of prompts.

        Returns:
            A ``Completion`` for one prompt; a list of them, in the same order, for a list.

        Raises:
            InvalidRequestError: a prompt or parameter is invalid; no prompt has run then.
            QueueFullError: too many requests wait; see ``max_waiting``.
            StepFailedError: the step of a request failed; the other requests are aborted.
            EngineClosedError: the engine is closed.
        """
        hints = self._complete_hints(hints)
        listed, is_single = list_prompts(prompts)
        by_prompt = zip(listed, _broadcast(params, len(listed)), strict=True)
        specs = [
            self._with_grammar(self.encoder.text(prompt, own, hints)) for prompt, own in by_prompt
        ]
        completions = self._complete(specs, progress=progress and not is_single)
        return completions[0] if is_single else completions

    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        params: Params = ...,
        *,
        hints: Hints | None = ...,
        progress: bool = ...,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: Params = SamplingParams(),
        *,
        hints: Hints | None = None,
        progress: bool = True,
    ) -> Completion | list[Completion]:
        """Answer one conversation, or a list of conversations as a batch.

        Args:
            messages: a conversation, ``[{"role": "user", "content": "..."}, ...]``, or a list of
                conversations.
            params, hints, progress: see ``generate``.

        Returns:
            A ``Completion`` for one conversation; a list of them, in the same order, for a list.

        Raises:
            InvalidRequestError: the model has no chat template, or its template rejects the
                messages.
            QueueFullError, StepFailedError, EngineClosedError: see ``generate``.
        """
        hints = self._complete_hints(hints)
        listed, is_single = list_conversations(messages)
        by_conversation = zip(listed, _broadcast(params, len(listed)), strict=True)
        specs = [
            self._with_grammar(self.encoder.chat(talk, own, hints)) for talk, own in by_conversation
        ]
        completions = self._complete(specs, progress=progress and not is_single)
        return completions[0] if is_single else completions

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Continue one prompt as a stream of outputs.

        The request is submitted at once. Closing or dropping the stream aborts it.

        Args:
            prompt: a text or a list of token ids.
            params, hints: see ``generate``.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError: see ``generate``.
            StepFailedError: from the iteration, if a step of the request fails.
        """
        hints = self._complete_hints(hints)
        spec = self.encoder.text(prompt, params, hints)
        return Stream(self.engine, self._with_grammar(spec))

    def stream_chat(
        self,
        messages: Conversation,
        params: SamplingParams = SamplingParams(),
        *,
        hints: Hints | None = None,
    ) -> Stream:
        """Answer one conversation as a stream of outputs; see ``stream`` and ``chat``."""
        hints = self._complete_hints(hints)
        spec = self.encoder.chat(messages, params, hints)
        return Stream(self.engine, self._with_grammar(spec))

    def _with_grammar(self, spec: RequestSpec) -> RequestSpec:
        """Return a request with the grammar that its parameters ask for, compiled."""
        structured_outputs = spec.params.structured_outputs
        if structured_outputs is None:
            return spec
        grammar = self.engine.compile_grammar(structured_outputs)
        return replace(spec, prompt=spec.prompt_ids, grammar=grammar)

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
