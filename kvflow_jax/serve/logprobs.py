"""Log probabilities in the shapes of OpenAI's two APIs, and of vLLM's ``prompt_logprobs``."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.serve.protocols import Tokenizer

LOWEST = -9999.0  # JSON has no infinity; OpenAI's own floor


class TextOffsets:
    """Where each token begins in the text, in characters, as one token after the other goes by.

    A character whose bytes several tokens bring counts once it is whole.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0
        self.skips_special = False

    def pass_by(self, token_id: int) -> int:
        """Characters before this token."""
        before, tokenizer = self._num_characters, self._tokenizer
        if tokenizer is None or (self.skips_special and tokenizer.is_special(token_id)):
            return before
        data = tokenizer.token_bytes(token_id)
        text = self._utf8.decode(data)
        self._num_characters += len(text)
        # Bytes from before that turn out to be no character become one of their own, ahead of it.
        return before + max(0, len(text) - len(data.decode(errors="replace")))


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
        offsets: TextOffsets,
        first_token: int | None = None,
    ) -> dict[str, Any]:
        """``logprobs`` of a completion choice or chunk.

        Args:
            offsets: of the choice, past the tokens written before.
            first_token: of an echoed prompt, which follows nothing and so has no probability.
        """
        ids = [] if first_token is None else [first_token]
        ids += [one.token_id for one in logprobs]
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
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": [offsets.pass_by(token_id) for token_id in ids],
        }

    def offsets(self) -> TextOffsets:
        return TextOffsets(self._tokenizer)

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
