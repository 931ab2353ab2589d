"""Builds the tokenizer of a .gguf file: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``).

It uses the tokenizers package, because transformers reads GGUF files only with torch installed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvflow_jax.errors import ModelLoadError

log = logging.getLogger(__name__)

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
# Pre-tokenizers of vocabularies where a word that is a token is not merged from parts.
_IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "tekken")


def build_tokenizer(fields: Mapping[str, Any], path: Path) -> Any:
    """Return a transformers ``PreTrainedTokenizerFast`` for the fields of a GGUF file.

    Args:
        path: of the file, for messages.

    Raises:
        ModelLoadError: fields are missing, or the tokenizer or pre-tokenizer is not supported.
    """
    from tokenizers import AddedToken, processors

    from kvflow_jax.models.quiet_imports import transformers

    kind = fields.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ModelLoadError(
            f"the tokenizer of {path} has kind {kind!r}, which is not supported; supported: "
            + ", ".join(builders)
        )
    needed = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores")}[kind]
    missing = [f"tokenizer.ggml.{name}" for name in needed if not _get(fields, name)]
    if missing:
        raise ModelLoadError(
            f"{path} has no complete tokenizer: missing {', '.join(missing)}; download another "
            "conversion of the model"
        )
    tokens: list[str] = _get(fields, "tokens")
    backend = builders[kind](fields, tokens, path)
    types: Sequence[int] = _get(fields, "token_type") or []
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (CONTROL, USER_DEFINED) and backend.token_to_id(token) is not None:
            is_special = token_type == CONTROL
            added = AddedToken(token, special=is_special, normalized=False)
            (backend.add_special_tokens if is_special else backend.add_tokens)([added])

    ids = {name: _get(fields, f"{name}_token_id") for name in ("bos", "eos", "padding", "unknown")}
    special = {name: None if i is None else tokens[i] for name, i in ids.items()}
    adds_bos = _get(fields, "add_bos_token")
    if adds_bos is None:
        adds_bos = kind == "llama" or _get(fields, "pre") in _IGNORE_MERGES
    if adds_bos and special["bos"] is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{special['bos']}:0 $A:0",
            pair=f"{special['bos']}:0 $A:0 {special['bos']}:1 $B:1",
            special_tokens=[(special["bos"], ids["bos"])],
        )
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special["bos"],
        eos_token=special["eos"],
        pad_token=special["padding"],
        unk_token=special["unknown"],
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def _get(fields: Mapping[str, Any], name: str) -> Any:
    """Return the field ``tokenizer.ggml.<name>``, None if it is missing."""
    return fields.get(f"tokenizer.ggml.{name}")


def _byte_level(fields: Mapping[str, Any], tokens: list[str], path: Path) -> Any:
    """Return a byte-level BPE ``tokenizers.Tokenizer``."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = _get(fields, "pre")
    if pre is None:
        log.warning("%s names no pre-tokenizer; using llama.cpp's default", path)
        pre = "default"
    if pre not in SPLITS:
        raise ModelLoadError(
            f"the tokenizer of {path} has pre-tokenizer {pre!r}, which is not supported; "
            f"supported: {', '.join(SPLITS)}; load the model from its Hugging Face folder instead"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = (merge.partition(" ") for merge in _get(fields, "merges"))
    pairs = [(left, right) for left, _, right in merges]
    backend = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre in _IGNORE_MERGES))
    if pre in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in _GPT2_SPLIT)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str], path: Path) -> Any:
    """Return a SentencePiece-style BPE ``tokenizers.Tokenizer`` with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores: Sequence[float] = _get(fields, "scores")
    is_gemma = str(fields.get("general.architecture")).startswith("gemma")
    if is_gemma:
        # Gemma's runs of spaces are stored as spaces, and its merges are in the order of tokens.
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
        scores = [-float(i) for i in range(len(tokens))]
    unknown = _get(fields, "unknown_token_id")
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(
            vocab,
            _merges(vocab, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    adds_space = _get(fields, "add_space_prefix")
    if adds_space or (adds_space is None and not is_gemma):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return each split of a token into two tokens, best resulting token first.

    These are SentencePiece's merges, which its models do not store.
    """
    found = [
        (scores[i], cut, token)
        for token, i in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(token[:cut], token[cut:]) for _, cut, token in found]
