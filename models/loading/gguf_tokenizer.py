"""Builds the tokenizer of a .gguf file: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``).

It uses the tokenizers package, because transformers reads GGUF files only with torch installed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import HfFields, Json, Problems
from kvflow_jax.models.rust_panics import panics_as_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# Of a SentencePiece token, which is cut at each. SentencePiece's own limit is 16.
MAX_TOKEN_CHARS = 512

# Values of gguf.TokenType.
CONTROL, USER_DEFINED = 3, 4

_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
# llama.cpp's default for files without a tokenizer.ggml.pre
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

# Pre-tokenizer (tokenizer.ggml.pre) -> regexes that split text, in turn, before BPE merges; empty:
# GPT-2's split. The regexes are those of llama.cpp's llama-vocab.cpp.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "gpt-2": (),
    "smollm": (r"\p{N}",),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "smaug-bpe", "dbrx"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
}
# Pre-tokenizers that end with GPT-2's split.
_GPT2_SPLIT = ("gpt-2", "smollm")
# Pre-tokenizers of text in normal form C.
_NFC = ("qwen2", "deepseek-r1-qwen")
# Pre-tokenizers of vocabularies where a word that is a token is not merged from parts.
_IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "tekken")
# Control tokens that keep the white space behind them in every model.
_UNSTRIPPED = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokenizer.ggml fields of a file. ``None``: the file does not have the field.

    Attributes:
        pre: name of the pre-tokenizer, "" if there is none.
        special: token ids by their role: bos, eos, padding, unknown.
    """

    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    pre: str
    special: Mapping[str, int | None]
    adds_bos: bool | None
    adds_space_prefix: bool | None

    @classmethod
    def read(cls, fields: HfFields) -> _Vocabulary:
        roles = ("bos", "eos", "padding", "unknown")
        ids = {role: fields.token_ids(f"tokenizer.ggml.{role}_token_id") for role in roles}
        tokens = fields.texts("tokenizer.ggml.tokens")
        for role, found in ids.items():
            if found and not 0 <= found[0] < len(tokens):
                fields.report(f"the {role} token {found[0]} is none of the {len(tokens)} tokens")
        flags = {
            name: fields.flag(name) if fields.has(name) else None
            for name in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix")
        }
        return cls(
            tokens=tokens,
            token_types=fields.token_ids("tokenizer.ggml.token_type"),
            merges=fields.texts("tokenizer.ggml.merges"),
            scores=fields.numbers("tokenizer.ggml.scores"),
            pre=fields.text("tokenizer.ggml.pre"),
            special={role: next(iter(found), None) for role, found in ids.items()},
            adds_bos=flags["tokenizer.ggml.add_bos_token"],
            adds_space_prefix=flags["tokenizer.ggml.add_space_prefix"],
        )

    def token(self, role: str) -> str | None:
        """Return the token of a role, None if there is none."""
        token_id = self.special[role]
        return None if token_id is None else self.tokens[token_id]


def build_tokenizer(
    fields: Json,
    path: Path,
    *,
    merges_in_token_order: bool = False,
    strips_after_control: bool = False,
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file with these fields.

    Args:
        path: of the file, for messages.
        merges_in_token_order, strips_after_control: see ``GgufForm``.

    Raises:
        ModelLoadError: fields are missing, or the tokenizer or pre-tokenizer is not supported.
    """
    from kvflow_jax.models.quiet_imports import transformers

    needed = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores")}
    reader = HfFields(fields, Problems(str(path)))
    kind = reader.text("tokenizer.ggml.model", "none")
    if kind not in needed:
        raise ModelLoadError(
            f"the tokenizer of {path} has kind {kind!r}, which is not supported; supported: "
            + ", ".join(needed)
        )
    names = (f"tokenizer.ggml.{name}" for name in needed[kind])
    if missing := [name for name in names if not reader.flag(name)]:
        raise ModelLoadError(
            f"{path} has no complete tokenizer: missing {', '.join(missing)}; download another "
            "conversion of the model"
        )
    vocabulary = _Vocabulary.read(reader)
    reader.problems.raise_if_any()
    try:
        with panics_as_errors():
            if kind == "gpt2":
                backend = _byte_level(vocabulary, path)
            else:
                backend = _sentencepiece(vocabulary, merges_in_token_order)
            strips = strips_after_control and kind == "llama"
            _add_tokens(backend, vocabulary, strips_after=strips)
    except ModelLoadError:
        raise
    except Exception as error:  # such as a merge of tokens that there are not; tokenizers' own type
        raise ModelLoadError(f"the tokenizer of {path} cannot be built: {error}") from error
    adds_bos = vocabulary.adds_bos
    if adds_bos is None:
        adds_bos = kind == "llama" or vocabulary.pre in _IGNORE_MERGES
    if adds_bos:
        _prepend_bos(backend, vocabulary)
    tokenizer: PreTrainedTokenizerFast = transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=vocabulary.token("bos"),
        eos_token=vocabulary.token("eos"),
        pad_token=vocabulary.token("padding"),
        unk_token=vocabulary.token("unknown"),
        chat_template=reader.text("tokenizer.chat_template") or None,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def _add_tokens(backend: Backend, vocabulary: _Vocabulary, *, strips_after: bool) -> None:
    """Mark the tokens that are not split, those of control as special.

    Args:
        strips_after: these tokens take the white space behind them, as llama.cpp does for Phi-3.
    """
    from tokenizers import AddedToken

    kinds = zip(vocabulary.tokens, vocabulary.token_types, strict=False)
    added: dict[int, list[AddedToken]] = {CONTROL: [], USER_DEFINED: []}
    for token, kind in kinds:
        if kind in added and backend.token_to_id(token) is not None:
            special = kind == CONTROL
            strips = strips_after and token not in _UNSTRIPPED
            added[kind].append(AddedToken(token, special=special, normalized=False, rstrip=strips))
    # At once: each call compiles the pattern of all anew.
    backend.add_special_tokens(added[CONTROL])
    backend.add_tokens(added[USER_DEFINED])


def _prepend_bos(backend: Backend, vocabulary: _Vocabulary) -> None:
    from tokenizers import processors

    bos, bos_id = vocabulary.token("bos"), vocabulary.special["bos"]
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, bos_id)],
        )


def _byte_level(vocabulary: _Vocabulary, path: Path) -> Backend:
    """Return a byte-level BPE tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = vocabulary.pre
    if not pre:
        log.warning("%s names no pre-tokenizer; using llama.cpp's default", path)
        pre = "default"
    if pre not in SPLITS:
        raise ModelLoadError(
            f"the tokenizer of {path} has pre-tokenizer {pre!r}, which is not supported; "
            f"supported: {', '.join(SPLITS)}; load the model from its Hugging Face folder instead"
        )
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = (merge.partition(" ") for merge in vocabulary.merges)
    pairs = [(left, right) for left, _, right in merges]
    backend = Tokenizer(models.BPE(ids, pairs, ignore_merges=pre in _IGNORE_MERGES))
    if pre in _NFC:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in _GPT2_SPLIT)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(vocabulary: _Vocabulary, merges_in_token_order: bool) -> Backend:
    """Return a SentencePiece-style BPE tokenizer with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = vocabulary.tokens, vocabulary.scores
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        raise ModelLoadError(f"a token has {longest} characters, the limit is {MAX_TOKEN_CHARS}")
    if merges_in_token_order:
        tokens = tuple(_with_underscores(token) for token in tokens)
        scores = tuple(-float(i) for i in range(len(tokens)))
    ids = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(
            ids,
            _merges(ids, scores),
            unk_token=vocabulary.token("unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    adds_space = vocabulary.adds_space_prefix
    if adds_space or (adds_space is None and not merges_in_token_order):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


def _with_underscores(token: str) -> str:
    """Return a run of spaces as SentencePiece writes it, other tokens as they are."""
    return "▁" * len(token) if token and not token.strip(" ") else token


def _merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return each split of a token into two tokens, best resulting token first.

    These are SentencePiece's merges, which its models do not store.
    """
    found = [
        (scores[i], cut, token)
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(token[:cut], token[cut:]) for _, cut, token in found]
