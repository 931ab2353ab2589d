"""Log probabilities in the formats of OpenAI's two APIs, and of vLLM's ``prompt_logprobs``."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.serve.protocols import Tokenizer

LOWEST = -9999.0  # OpenAI's floor, since JSON has no infinity


class TextOffsets:
    """The offset of each token in the text, in characters, computed token by token.

    A character whose bytes span several tokens counts once it is complete.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0
        self.skips_special = False

    def advance(self, token_id: int) -> int:
        """Return the number of characters before the next token, and count its characters."""
        before, tokenizer = self._num_characters, self._tokenizer
        if tokenizer is None or (self.skips_special and tokenizer.is_special(token_id)):
            return before
        data = tokenizer.token_bytes(token_id)
        text = self._utf8.decode(data)
        self._num_characters += len(text)
        # Earlier bytes that turn out to be invalid UTF-8 become a replacement character, which
        # stands before this token.
        return before + max(0, len(text) - len(data.decode(errors="replace")))


class LogprobWriter:
    """Formats log probabilities, with tokens as text, or as ids for a model without tokenizer.

    Args:
        as_ids: write the tokens of an output as ``token_id:N``, which is unambiguous.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool = False) -> None:
        self._tokenizer, self._as_ids = tokenizer, as_ids

    def chat(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Return ``logprobs`` of a chat choice or delta."""
        content = [
            {
                **self._chat_token(entry.token_id, entry.logprob),
                "top_logprobs": [self._chat_token(token, value) for token, value in entry.top],
            }
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}

    def completion(
        self,
        logprobs: Sequence[TokenLogprobs],
        offsets: TextOffsets,
        first_token: int | None = None,
    ) -> dict[str, Any]:
        """Return ``logprobs`` of a completion choice or chunk.

        Args:
            offsets: of the choice, advanced past the tokens of earlier chunks.
            first_token: first token of an echoed prompt, which has no probability because no
                token precedes it.
        """
        ids = [] if first_token is None else [first_token]
        ids += [entry.token_id for entry in logprobs]
        texts: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        if first_token is not None:
            texts.append(self.text(first_token))
            values.append(None)
            tops.append(None)
        for entry in logprobs:
            texts.append(self.text(entry.token_id))
            values.append(_finite(entry.logprob))
            # The sampled token is always included, and first, as in vLLM. Of tokens with the same
            # text the likelier one has its value there.
            top = {self.text(entry.token_id): _finite(entry.logprob)}
            for token, value in entry.top:
                top.setdefault(self.text(token), _finite(value))
            tops.append(top)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": [offsets.advance(token_id) for token_id in ids],
        }

    def offsets(self) -> TextOffsets:
        return TextOffsets(self._tokenizer)

    def prompt(self, logprobs: Sequence[TokenLogprobs]) -> list[dict[str, Any] | None]:
        """Return vLLM's ``prompt_logprobs``: None for the first token, then a dict by token id."""
        rest = [
            {
                str(token): {"logprob": _finite(value), "decoded_token": self._decoded(token)}
                for token, value in [*entry.top, (entry.token_id, entry.logprob)]
            }
            for entry in logprobs
        ]
        return [None, *rest]

    def text(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._decoded(token_id)

    def _decoded(self, token_id: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = None if self._tokenizer is None else list(self._tokenizer.token_bytes(token_id))
        return {"token": self.text(token_id), "logprob": _finite(logprob), "bytes": data}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
