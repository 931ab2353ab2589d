"""Builds the tokenizer of a .gguf file: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``).

It uses the tokenizers package, because transformers reads GGUF files only with torch installed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families.hf_fields import HfFields, Json, Problems
from kvflow_jax.models.loading.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from kvflow_jax.models.loading.gguf_vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    GgufVocabulary,
)
from kvflow_jax.models.rust_panics import panics_as_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# Of a SentencePiece token, which is cut at each. SentencePiece's own limit is 16.
MAX_TOKEN_CHARS = 512

# Control tokens that keep the white space behind them in every model.
_UNSTRIPPED = ("<unk>", "<s>", "<|endoftext|>")


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
            f"the tokenizer of {path} has kind {kind!r:.80}, which is not supported; supported: "
            + ", ".join(needed)
        )
    names = (f"tokenizer.ggml.{name}" for name in needed[kind])
    if missing := [name for name in names if not reader.flag(name)]:
        raise ModelLoadError(
            f"{path} has no complete tokenizer: missing {', '.join(missing)}; download another "
            "conversion of the model"
        )
    vocabulary = GgufVocabulary.read(reader)
    reader.problems.raise_if_any()
    try:
        with panics_as_errors():
            if kind == "gpt2":
                backend = _byte_level(vocabulary, path)
            else:
                backend = _sentencepiece(vocabulary, merges_in_token_order)
            strips = strips_after_control and kind == "llama"
            _add_tokens(backend, vocabulary, strips_after=strips)
            adds_bos = vocabulary.adds_bos
            if adds_bos is None:
                adds_bos = kind == "llama" or _pre_tokenizer(vocabulary, path).ignores_merges
            if adds_bos:
                _prepend_bos(backend, vocabulary)
            tokenizer: PreTrainedTokenizerFast = transformers().PreTrainedTokenizerFast(
                tokenizer_object=backend,
                bos_token=vocabulary.token("bos"),
                eos_token=vocabulary.token("eos"),
                pad_token=vocabulary.token("padding"),
                unk_token=vocabulary.token("unknown"),
                chat_template=vocabulary.chat_template,
                clean_up_tokenization_spaces=False,
            )
    except ModelLoadError:
        raise
    except Exception as error:  # such as a merge of tokens that there are not; tokenizers' own type
        raise ModelLoadError(f"the tokenizer of {path} cannot be built: {error}") from error
    return tokenizer


def _add_tokens(backend: Backend, vocabulary: GgufVocabulary, *, strips_after: bool) -> None:
    """Mark the tokens that are not split, those of control as special.

    Args:
        strips_after: these tokens take the white space behind them, as llama.cpp does for Phi-3.
    """
    from tokenizers import AddedToken

    special: list[AddedToken] = []
    plain: list[AddedToken] = []
    for token, kind in vocabulary.types_of(UNKNOWN, CONTROL, USER_DEFINED).items():
        # In a tokenizer that merges in token order, runs of spaces are those of SentencePiece.
        known = token if backend.token_to_id(token) is not None else _with_underscores(token)
        if backend.token_to_id(known) is None:
            continue
        strips = strips_after and known not in _UNSTRIPPED
        (plain if kind == USER_DEFINED else special).append(
            AddedToken(known, special=kind != USER_DEFINED, normalized=False, rstrip=strips)
        )
    # At once: each call compiles the pattern of all anew.
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _prepend_bos(backend: Backend, vocabulary: GgufVocabulary) -> None:
    from tokenizers import processors

    bos, bos_id = vocabulary.token("bos"), vocabulary.special["bos"]
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single="bos:0 $A:0",
            pair="bos:0 $A:0 bos:1 $B:1",
            # By a name of its own: the token may be spelled as a piece of a template.
            special_tokens=[{"id": "bos", "ids": [bos_id], "tokens": [bos]}],
        )


def _byte_level(vocabulary: GgufVocabulary, path: Path) -> Backend:
    """Return a byte-level BPE tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if not vocabulary.pre:
        log.warning("%s names no pre-tokenizer; using llama.cpp's default", path)
    pre = _pre_tokenizer(vocabulary, path)
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = (merge.partition(" ") for merge in vocabulary.merges)
    pairs = [(left, right) for left, _, right in merges]
    backend = Tokenizer(models.BPE(ids, pairs, ignore_merges=pre.ignores_merges))
    if pre.is_nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in pre.splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.then_gpt2)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer(vocabulary: GgufVocabulary, path: Path) -> PreTokenizer:
    pre = vocabulary.pre or "default"
    if pre not in PRE_TOKENIZERS:
        raise ModelLoadError(
            f"the tokenizer of {path} has pre-tokenizer {pre!r:.80}, which is not supported; "
            f"supported: {', '.join(PRE_TOKENIZERS)}; load the model from its Hugging Face folder "
            "instead"
        )
    return PRE_TOKENIZERS[pre]


def _sentencepiece(vocabulary: GgufVocabulary, merges_in_token_order: bool) -> Backend:
    """Return a SentencePiece-style BPE tokenizer with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = vocabulary.tokens, vocabulary.scores
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        raise ValueError(f"a token has {longest} characters, the limit is {MAX_TOKEN_CHARS}")
    if len(scores) < len(tokens):
        raise ValueError(f"it has {len(scores)} scores for {len(tokens)} tokens")
    if merges_in_token_order:
        tokens = tuple(_with_underscores(token) for token in tokens)
    if merges_in_token_order or not vocabulary.has_scores:
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
