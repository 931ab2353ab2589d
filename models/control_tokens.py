"""Control tokens of chats, such as ``<|im_end|>``: templates write them, texts only spell them.

A tokenizer reads the rendered prompt as one string and cannot tell the two apart. Therefore texts
are marked before the template is applied: a character that no text has stands within each spelling
of a control token. The spelling no longer matches the token, whatever the template does to the text
around it. The mark is removed as the prompt is encoded, behind the matching of control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from kvflow_jax.errors import InvalidRequestError

# A noncharacter of Unicode, for internal use: texts have no use for it, and lose it.
MARK = "\ufdd0"
# Characters of a token that are compared; a longer one is known by its beginning.
_MAX_COMPARED = 64
_SLICE_CHARS = 1 << 16  # searched at a time, about 20 ms where each character may begin a token
# What a template does with a tag that it looks for in a text, such as </think>.
_LOOKS_FOR = r"""
    \b(?:r?split|r?partition|startswith|endswith|replace|r?find|r?index)\(\s*['"][^'"]*{token}
    | (['"]){token}[^'"]*\1\s*(?:not\s+)?in\b
"""


class ControlTokens:
    """Keeps texts of a chat text, where they spell control tokens of its model.

    These are the special tokens, and other added tokens that the chat template writes. Tags that
    models write and clients send back, such as ``<think>``, stay tokens: in messages of the
    assistant those that are not special or that the template looks for, in others those of which
    both is true.

    Args:
        backend: a ``tokenizers.Tokenizer``.
        template: the chat template.
    """

    def __init__(self, backend: Any, template: str) -> None:
        self._backend = backend
        # A token of one character cannot be taken apart.
        added = [t for t in backend.get_added_tokens_decoder().values() if len(t.content) > 1]
        tokens = {token.content for token in added}
        special = {token.content for token in added if token.special}
        looked_for = {token for token in tokens if _is_looked_for(token, template)}
        written = {token for token in tokens if _is_written(token, template)}
        self._control = special | (written - looked_for)
        self._in_answers = _first_chars(special - looked_for)
        self._in_others = _first_chars(self._control)
        # These are matched in the normalised text, in which other characters may become them.
        self._is_always_needed = backend.normalizer is not None and any(
            token.normalized for token in added if token.content in self._control
        )

    def mark(self, value: Any, *, is_answer: bool = False) -> Any:
        """Return JSON whose strings are marked where they spell control tokens.

        Args:
            is_answer: the assistant has written the strings.
        """
        if isinstance(value, str):
            pattern = self._in_answers if is_answer else self._in_others
            return value if pattern is None else _marked(value, pattern)
        if isinstance(value, Mapping):
            return {
                self.mark(key, is_answer=is_answer): self.mark(item, is_answer=is_answer)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.mark(item, is_answer=is_answer) for item in value]
        return value

    def mark_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages of a chat with their strings marked."""
        return [
            self.mark(
                message,
                # The template refuses what is no message.
                is_answer=isinstance(message, Mapping) and message.get("role") == "assistant",
            )
            for message in messages
        ]

    def is_needed(self, text: str) -> bool:
        """True if a rendered prompt must be encoded with ``encode``."""
        return self._is_always_needed or MARK in text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of a rendered prompt, without its marks.

        Raises:
            InvalidRequestError: the vocabulary makes a control token of a marked spelling.
        """
        encoder = self._encoder
        # As a batch of one, which releases the GIL: ``encode`` keeps it, a second for a long text.
        (encoding,) = encoder.backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids = encoding.ids
        for i, token_id in enumerate(ids):
            if token_id not in encoder.control_ids:
                continue
            # None for a token that the tokenizer adds.
            start, end = encoding.token_to_chars(i) or (0, 0)
            if MARK in text[start:end]:
                raise InvalidRequestError(
                    f"the messages spell the control token {text[start:end].replace(MARK, '')!r}, "
                    "which this model cannot read as text",
                    param="messages",
                )
        return [token_id for token_id in ids if token_id != encoder.mark_id]

    @cached_property
    def _encoder(self) -> _Encoder:
        """The tokenizer that removes marks.

        Its normaliser does, so that a spelling is read together with the text around it. Where
        merges of the vocabulary would make a control token of it, marks divide the text instead.
        """
        encoder = self._new_encoder(divides=False)
        spellings = [self.mark(token) for token in self._control]
        ids = (i for text in spellings for i in encoder.backend.encode(text).ids)
        return self._new_encoder(divides=True) if encoder.control_ids & {*ids} else encoder

    def _new_encoder(self, *, divides: bool) -> _Encoder:
        from tokenizers import AddedToken, Tokenizer, normalizers

        source = self._backend
        backend = Tokenizer(source.model)  # shares the vocabulary
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if (value := getattr(source, part)) is not None:
                setattr(backend, part, value)
        if not divides:
            others = [] if source.normalizer is None else [source.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Replace(MARK, ""), *others])
        added = [token for _, token in sorted(source.get_added_tokens_decoder().items())]
        # In their order, which gives them their ids, and many at once: each call compiles anew.
        for is_special, group in groupby(added, lambda token: token.special):
            copies = [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    # Control tokens are matched before the normaliser removes marks.
                    normalized=token.normalized and token.content not in self._control,
                    special=is_special,
                )
                for token in group
            ]
            (backend.add_special_tokens if is_special else backend.add_tokens)(copies)
        if divides:
            backend.add_special_tokens([AddedToken(MARK, normalized=False)])
        found = (backend.token_to_id(token) for token in self._control)
        control_ids = frozenset(token_id for token_id in found if token_id is not None)
        return _Encoder(backend, control_ids, backend.token_to_id(MARK))


@dataclass(frozen=True, slots=True)
class _Encoder:
    """A tokenizer that removes marks.

    Attributes:
        mark_id: a token to leave out; None: no token is a mark.
    """

    backend: Any
    control_ids: frozenset[int]
    mark_id: int | None


def _is_written(token: str, template: str) -> bool:
    # Spaces and words may be added tokens, too; they control nothing.
    return token in template and not token.isspace() and not token.isalnum()


def _is_looked_for(token: str, template: str) -> bool:
    if token not in template:
        return False
    pattern = _LOOKS_FOR.replace("{token}", re.escape(token))
    return re.search(pattern, template, re.VERBOSE) is not None


def _marked(text: str, pattern: re.Pattern[str]) -> str:
    """Return a text with a mark behind each match of ``_first_chars``.

    In slices, as the GIL is kept for each: a text as long as the context may be megabytes.
    """
    pieces: list[str] = []
    marked = 0
    for begin in range(0, len(text), _SLICE_CHARS):
        end = begin + _SLICE_CHARS
        # The lookahead may reach into the next slice.
        for match in pattern.finditer(text, begin, end + _MAX_COMPARED):
            if match.start() >= end:
                break
            pieces += (text[marked : match.end()], MARK)
            marked = match.end()
    return "".join([*pieces, text[marked:]]) if marked else text


def _first_chars(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern of the first character of each token that a text spells.

    Upper and lower case are equal, because a template may change it. Spellings that overlap are all
    found. The tokens are a trie, so that time does not grow with their number.
    """
    beginnings = sorted({token[:_MAX_COMPARED] for token in tokens})
    patterns = [
        f"{re.escape(first)}(?={_trie([token[1:] for token in group])})"
        for first, group in groupby(beginnings, lambda token: token[0])
    ]
    return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None


def _trie(words: Iterable[str]) -> str:
    """Return a pattern of the shortest of these sorted words with which a text goes on."""
    branches = []
    for first, group in groupby(words, lambda word: word[:1]):
        if not first:
            return ""
        branches.append(re.escape(first) + _trie([word[1:] for word in group]))
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
