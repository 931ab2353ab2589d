"""The pre-tokenizers of .gguf files, by the names that llama.cpp gives them."""

from __future__ import annotations

from dataclasses import dataclass, replace

_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED_CODER = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\uD7FF]+", r"\p{N}")
# llama.cpp's default for files without a tokenizer.ggml.pre
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a byte-level tokenizer prepares text for BPE merges.

    Attributes:
        splits: regexes that split text, in turn; those of llama.cpp's llama-vocab.cpp.
        then_gpt2: whether GPT-2's split follows.
        is_nfc: whether text is brought into normal form C before.
        ignores_merges: whether a word that is a token is not merged from parts. These vocabularies
            have a BOS unless the file says otherwise.
    """

    splits: tuple[str, ...] = ()
    then_gpt2: bool = False
    is_nfc: bool = False
    ignores_merges: bool = False


_GPT2 = PreTokenizer(then_gpt2=True)
_DIGITS = PreTokenizer((r"\p{N}",), then_gpt2=True)
_CL100K = PreTokenizer((_LLAMA3,))
_QWEN = PreTokenizer((_QWEN2,))

# tokenizer.ggml.pre -> pre-tokenizer, for the models of the families that are supported.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer(_DEFAULT),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "olmo", "mellum", "trillion", "granite-docling", "a.x-4.0"), _GPT2
    ),
    **dict.fromkeys(("smollm", "starcoder", "refact", "minerva-7b", "codeshell"), _DIGITS),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"),
        replace(_CL100K, ignores_merges=True),
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _CL100K),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), replace(_QWEN, is_nfc=True)),
    **dict.fromkeys(("kormo", "f2llmv2", "megrez"), _QWEN),
    "tekken": PreTokenizer((_TEKKEN,), ignores_merges=True),
    **dict.fromkeys(("gpt-4o", "kanana2"), PreTokenizer((_GPT4O,))),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
    "seed-coder": PreTokenizer((_SEED_CODER,)),
}
