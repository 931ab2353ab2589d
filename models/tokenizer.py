"""Text to tokens and back, whole or as a stream."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from kvflow_jax.errors import InvalidRequestError, ModelLoadError
from kvflow_jax.models.config import token_ids

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")  # a folder must have one of them


class Tokenizer:
    """A Hugging Face fast tokenizer and the ids that end a generation.

    Args:
        hf: a transformers PreTrainedTokenizerFast.
        eos_token_ids: ends known from elsewhere (config.json, generation_config.json); the
            tokenizer's own is added.

    Raises:
        ModelLoadError: where its tokens cannot be turned into bytes one by one.
    """

    def __init__(self, hf: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self.hf = hf
        hf.model_max_length = 1 << 62  # the engine bounds prompts; transformers would warn
        own = [] if hf.eos_token_id is None else [hf.eos_token_id]
        self.eos_token_ids = tuple(dict.fromkeys([*eos_token_ids, *own]))
        self._added = hf.added_tokens_decoder
        self._byte_level = _is_byte_level(hf.backend_tokenizer)
        # Bound here and not decorated below, so that a cache lives as long as its tokenizer.
        self.token_bytes = lru_cache(maxsize=None)(self._token_bytes)

    @classmethod
    def from_folder(cls, folder: Path, eos_token_ids: Iterable[int] = ()) -> Tokenizer:
        """The tokenizer of a Hugging Face folder, its ends and the ones given.

        Raises:
            ModelLoadError: where files are missing or cannot be read.
        """
        from kvflow_jax.models.quiet_imports import transformers

        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise ModelLoadError(
                f"{folder} has no tokenizer.json; download it, or save one there with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            hf = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the readers behind it raise errors of many libraries
            raise ModelLoadError(f"the tokenizer in {folder} cannot be read: {error}") from error
        if not getattr(hf, "is_fast", False):
            raise ModelLoadError(f"the tokenizer in {folder} has no fast form (tokenizer.json)")
        ends = [*eos_token_ids]
        for name in ("config.json", "generation_config.json"):
            if (folder / name).exists():
                try:
                    ends += token_ids(json.loads((folder / name).read_text()).get("eos_token_id"))
                except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
                    raise ModelLoadError(
                        f"{folder / name} is no JSON object with token ids in eos_token_id: {error}"
                    ) from error
        return cls(hf, ends)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.hf)

    @cached_property
    def max_token_bytes(self) -> int:
        """UTF-8 bytes of the longest token: no text has fewer tokens than its bytes over this."""
        return max(len(self.token_bytes(i)) for i in range(self.vocab_size))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text, with those the model expects around it (a BOS, where it has one)."""
        return list(self.hf.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
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
        """Tokens of a conversation, as the model's chat template writes it.

        Raises:
            InvalidRequestError: where there is no template or it refuses these messages.
        """
        if not self.hf.chat_template and "chat_template" not in template_args:
            raise InvalidRequestError(
                "this model has no chat template: send a plain prompt to /v1/completions, "
                "or serve a model that has one (chat_template.jinja or tokenizer_config.json)",
                param="messages",
            )
        import jinja2

        try:
            encoded = self.hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=add_generation_prompt,
                **template_args,
            )
        # Templates index and concatenate what they are given: a message of the wrong form
        # surfaces as one of these.
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
            raise InvalidRequestError(
                f"the chat template refused the messages: {error}", param="messages"
            ) from error
        return list(encoded["input_ids"])

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A stream of text for one request's output."""
        return Detokenizer(self, skip_special_tokens=skip_special_tokens)

    def is_special(self, token_id: int) -> bool:
        """Whether ``decode`` skips this token."""
        added = self._added.get(token_id)
        return added is not None and bool(added.special)

    def _token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes a token stands for within a text; none for ids past the vocabulary."""
        token = self.hf.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._byte_level:
            byte_of = _byte_of_char()
            if all(char in byte_of for char in token):
                return bytes(byte_of[char] for char in token)
            return str(token).encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return str(token).replace("▁", " ").encode()


class Detokenizer:
    """Text of one output as its tokens arrive; constant work a token.

    Only whole characters come out: the bytes of an unfinished one wait for the tokens that finish
    it, and bytes that can no longer become one turn to U+FFFD at once. All pieces together equal
    ``decode(prompt + output)`` after ``decode(prompt)``: tokens are read as they stand within a
    text, so the space that some decoders strip from the start of a text is kept.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that these tokens complete, possibly none."""
        tokenizer = self._tokenizer
        return self._utf8.decode(
            b"".join(
                tokenizer.token_bytes(token_id)
                for token_id in ids
                if not (self._skip_special and tokenizer.is_special(token_id))
            )
        )

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was finished."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


@cache
def _byte_of_char() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 stands for itself; the other bytes are the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _is_byte_level(backend: Any) -> bool:
    """True for byte-level BPE, False for SentencePiece with byte fallback.

    Both give every token its own bytes, which is what streaming needs.
    """
    decoder = json.loads(backend.to_str())["decoder"] or {"type": "none"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    types = {step["type"] for step in steps}
    if types == {"ByteLevel"}:
        return True
    if types <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return False
    raise ModelLoadError(
        f"tokenizer decoder {' + '.join(sorted(types))} is not supported; supported: ByteLevel "
        "(GPT-2, Llama 3, Qwen, SmolLM2) and SentencePiece's Replace, ByteFallback, Fuse, Strip"
    )
