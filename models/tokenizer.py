"""Tokenizer, and a detokenizer that streams text."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from kvflow_jax.errors import InvalidRequestError, ModelLoadError
from kvflow_jax.models.control_tokens import ControlTokens
from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.json_file import read_json
from kvflow_jax.models.template_budget import bound_chat_templates, template_budget
from kvflow_jax.models.template_errors import describe_template_error
from kvflow_jax.models.tokenizer_files import read_tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# Of transformers, not of the tokenizer.
_PRIVATE_INFO = ("name_or_path", "tokenizer_object", "backend", "is_local", "local_files_only")


class Tokenizer:
    """A Hugging Face fast tokenizer and the token ids that end a generation.

    Args:
        hf: a transformers PreTrainedTokenizerFast.
        eos_token_ids: end tokens from other files (config.json, generation_config.json), to which
            the tokenizer's own is added.

    Raises:
        ModelLoadError: its tokens cannot be converted to bytes one by one.
    """

    def __init__(self, hf: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self.hf = hf
        bound_chat_templates()
        hf.model_max_length = 1 << 62  # the engine bounds prompts; transformers would warn
        own = [] if hf.eos_token_id is None else [hf.eos_token_id]
        self.eos_token_ids = tuple(dict.fromkeys([*eos_token_ids, *own]))
        self._added = hf.added_tokens_decoder
        self._byte_level = _is_byte_level(hf.backend_tokenizer)
        self._accented_ids = frozenset(
            i
            for i, token in self._added.items()
            if self._byte_level and not token.content.isascii()
        )
        # A decorator would make one cache for all tokenizers; this one lives as long as its own.
        self.token_bytes = lru_cache(maxsize=None)(self._token_bytes)

    @classmethod
    def from_folder(cls, folder: Path, eos_token_ids: Iterable[int] = ()) -> Tokenizer:
        """Load the tokenizer of a Hugging Face folder; it ends also at ``eos_token_ids``.

        Raises:
            ModelLoadError: files are missing or cannot be read.
        """
        hf = read_tokenizer(folder)
        all_eos_ids = [*eos_token_ids]
        for name in ("config.json", "generation_config.json"):
            if (folder / name).exists():
                all_eos_ids += _read_eos_ids(folder / name)
        return cls(hf, all_eos_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.hf)

    def serialized(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json, without padding and truncation."""
        backend = copy(self.hf.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())

    @property
    def max_token_bytes(self) -> int:
        """UTF-8 bytes of the longest token; a text has at least its bytes / this many tokens."""
        return self._max_token_bytes

    # Behind a property, which the server's protocol asks for.
    @cached_property
    def _max_token_bytes(self) -> int:
        return max(len(self.token_bytes(i)) for i in range(self.vocab_size))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a text, with the special tokens that the model expects (BOS)."""
        return list(self.hf.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD."""
        # tokenizers takes the accents of added tokens for bytes.
        if not self._accented_ids.isdisjoint(ids):
            stream = self.detokenizer(skip_special_tokens=skip_special_tokens)
            return stream.push(ids) + stream.flush()
        return str(
            self.hf.decode(
                list(ids),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **template_args: Any,
    ) -> list[int]:
        """Return the tokens of a conversation rendered by the model's chat template.

        Args:
            messages: their texts may have marks of ``control_tokens``; else control tokens that
                they spell are control tokens.
            template_args: variables of the template and arguments of transformers' method of this
                name; and ``add_special_tokens``, which adds those that ``encode`` adds, beside the
                template's own.

        Raises:
            InvalidRequestError: the model has no template, or it refuses these messages.
        """
        if not self.hf.chat_template and "chat_template" not in template_args:
            raise InvalidRequestError(
                "this model has no chat template: send a plain prompt to /v1/completions, "
                "or serve a model that has one (chat_template.jinja or tokenizer_config.json), or "
                "give the server one with --chat-template FILE",
                param="messages",
            )
        adds_special = bool(template_args.pop("add_special_tokens", False))
        try:
            with template_budget():
                text = self.hf.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **template_args,
                )
        # Templates index, concatenate and divide what they are given, so that a malformed message
        # raises any error. So do a template's own faults, such as a loop that the sandbox refuses.
        except Exception as error:
            raise InvalidRequestError(
                f"the chat template refused the messages: {describe_template_error(error)}",
                param="messages",
            ) from error
        if self.control_tokens.is_needed(text):
            return self.control_tokens.encode(text, add_special_tokens=adds_special)
        return self.encode(text, add_special_tokens=adds_special)

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """Marks texts of a chat that spell control tokens, before ``apply_chat_template``."""
        return ControlTokens(self.hf.backend_tokenizer, self.chat_template or "")

    @property
    def chat_template(self) -> str | None:
        """The chat template, the one for tools if there are several; None if there is none."""
        template = self.hf.chat_template
        if isinstance(template, dict):
            template = template.get("tool_use") or template.get("default")
        return None if template is None else str(template)

    def use_chat_template(self, template: str) -> None:
        """Render chats with another template than the model's own; see ``read_chat_template``."""
        self.hf.chat_template = template
        # Which tokens are control tokens depends on the template.
        self.__dict__.pop("control_tokens", None)

    def info(self) -> dict[str, Any]:
        """Return the fields of its tokenizer_config.json, without paths of files, as JSON."""
        fields = {
            name: value
            for name, value in self.hf.init_kwargs.items()
            if not name.endswith("_file") and name not in _PRIVATE_INFO
        }
        added = {str(i): token.__getstate__() for i, token in sorted(self._added.items())}
        fields |= {
            "tokenizer_class": fields.get("tokenizer_class") or type(self.hf).__name__,
            "added_tokens_decoder": added,
            "chat_template": self.chat_template,
            "vocab_size": self.vocab_size,
        }
        info: dict[str, Any] = json.loads(json.dumps(fields, default=str))
        return info

    def detokenizer(
        self, *, skip_special_tokens: bool = True, kept_tokens: Iterable[str] = ()
    ) -> Detokenizer:
        """Return a new detokenizer for the output of one request.

        Args:
            kept_tokens: special tokens, as text, that are never skipped.
        """
        kept_ids = frozenset(self.special_token_ids(kept_tokens).values())
        return Detokenizer(self, skip_special_tokens=skip_special_tokens, kept_ids=kept_ids)

    def special_token_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Return those texts that are special tokens, with their ids."""
        # Not by the vocabulary: some tokenizers give unknown texts the id of a special token.
        ids = {token.content: i for i, token in self._added.items() if token.special}
        return {text: ids[text] for text in texts if text in ids}

    def token_strs(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary writes them; empty for ids past it."""
        return [token or "" for token in self.hf.convert_ids_to_tokens(list(ids))]

    def is_special(self, token_id: int) -> bool:
        """True if ``decode`` skips this token."""
        added = self._added.get(token_id)
        return added is not None and bool(added.special)

    def _token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token within a text; none for ids past the vocabulary."""
        # Added tokens are texts, not characters that stand for bytes.
        if (added := self._added.get(token_id)) is not None and self._byte_level:
            return str(added.content).encode()
        token = self.hf.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._byte_level:
            byte_of = _byte_of_char()
            if all(char in byte_of for char in token):
                return bytes(byte_of[char] for char in token)
            return str(token).encode()
        if _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("▁", " ").encode()


class Detokenizer:
    """Streamed text of one output, with constant work per token.

    Only complete characters are returned. The bytes of an incomplete character are buffered until
    later tokens complete it; bytes that can no longer be completed become U+FFFD at once. The
    concatenated text equals ``decode(prompt + output)`` without its prefix ``decode(prompt)``:
    tokens are read as within a text, so the space that some decoders strip from the start of a text
    is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        kept_ids: frozenset[int] = frozenset(),  # special tokens that are not skipped
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._kept_ids = kept_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens and return the text that they complete, possibly empty."""
        tokenizer = self._tokenizer
        return self._utf8.decode(
            b"".join(
                tokenizer.token_bytes(token_id)
                for token_id in ids
                if not self._is_skipped(token_id)
            )
        )

    def _is_skipped(self, token_id: int) -> bool:
        is_special = self._skip_special and self._tokenizer.is_special(token_id)
        return is_special and token_id not in self._kept_ids

    def flush(self) -> str:
        """End the stream and return U+FFFD if a character is incomplete, else an empty string."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _read_eos_ids(path: Path) -> tuple[int, ...]:
    """Return the end tokens of a config.json or generation_config.json."""
    fields = HfFields(read_json(path))
    token_ids = fields.token_ids("eos_token_id")
    if not fields.usable("eos_token_id"):
        raise ModelLoadError(f"{path} has no token ids: {', '.join(fields.problems.messages())}")
    return token_ids


@cache
def _byte_of_char() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 characters map to themselves, the characters from U+0100 on to other bytes.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _is_byte_level(backend: Any) -> bool:
    """Return True for byte-level BPE, False for SentencePiece with byte fallback.

    Both map each token to bytes independently of other tokens, which streaming needs.

    Raises:
        ModelLoadError: the tokenizer has any other decoder.
    """
    decoder: dict[str, Any] = json.loads(backend.to_str())["decoder"] or {"type": "none"}
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    types = {step["type"] for step in steps}
    if types == {"ByteLevel"}:
        return True
    if types <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return False
    raise ModelLoadError(
        f"tokenizer decoder {' + '.join(sorted(types))} is not supported; supported: ByteLevel "
        "(GPT-2, Llama 3, Qwen, SmolLM2) and SentencePiece's Replace, ByteFallback, Fuse, Strip"
    )
