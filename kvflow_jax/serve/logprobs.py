"""Log probabilities in the shapes of OpenAI's two APIs, and of vLLM's ``prompt_logprobs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvflow_jax.outputs import TokenLogprobs
from kvflow_jax.serve.contracts import Tokenizer

LOWEST = -9999.0  # JSON has no infinity; OpenAI's own floor


class LogprobWriter:
    """Writes tokens as text; a model without a tokenizer has their ids instead."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def chat(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """``logprobs`` of a chat choice or delta."""
        content = [
            {
                **self._chat_token(one.token_id, one.logprob),
                "top_logprobs": [self._chat_token(token, value) for token, value in one.top],
            }
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def completion(
        self,
        logprobs: Sequence[TokenLogprobs],
        offset: int,
        first_token: int | None = None,
    ) -> dict[str, Any]:
        """``logprobs`` of a completion choice or chunk.

        Args:
            offset: characters of the text before the first of these tokens.
            first_token: of an echoed prompt, which follows nothing and so has no probability.
        """
        texts: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        if first_token is not None:
            texts.append(self.text(first_token))
            values.append(None)
            tops.append(None)
        for one in logprobs:
            texts.append(self.text(one.token_id))
            values.append(_finite(one.logprob))
            # Likeliest last: of tokens that read the same, its value stays. The chosen one is
            # always among them.
            top = {self.text(token): _finite(value) for token, value in reversed(one.top)}
            tops.append({**top, self.text(one.token_id): _finite(one.logprob)})
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def prompt(self, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any] | None]:
        """vLLM's ``prompt_logprobs``: nothing for the first token, then by token id."""
        rest = [
            {
                str(token): {"logprob": _finite(value), "decoded_token": self.text(token)}
                for token, value in [*one.top, (one.token_id, one.logprob)]
            }
            for one in logprobs
        ]
        return [None, *rest]

    def text(self, token_id: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = None if self._tokenizer is None else list(self._tokenizer.token_bytes(token_id))
        return {"token": self.text(token_id), "logprob": _finite(logprob), "bytes": data}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
