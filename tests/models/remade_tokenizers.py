"""Tokenizers made as those of published models, trained on a few pages of text.

Each is what the tokenizer.json of its model is, but for the size of the vocabulary: the same
normalizer, pre-tokenizer, post-processor, decoder, order of ids and special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text()
_OTHERS = (
    "Ein naïver Café-Besitzer sagt: »schön, daß du 1234567 Mal da warst«!\n\n"
    "    for i in range(10):\n        print(f'{i} != {i+1}')\n\t\treturn None\n"
    "你好,世界。今天天气很好。 Привет, мир! नमस्ते दुनिया 🙂🙂 it's I'll WE'VE don't\r\n"
)
TEXT = [*_LICENSE.split("\n\n"), *[_OTHERS] * 4]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_END}"
_O200K = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_END}"
)

Piece = tuple[str, float, int]  # text, score and type of a token of a SentencePiece model


@dataclass(frozen=True)
class Remade:
    """A tokenizer, and what a converter reads beside it.

    Attributes:
        ends: the tokens that end a generation, which the model's generation_config.json names.
        pre: llama.cpp's name of the pre-tokenizer; empty for SentencePiece.
        pieces: of the tokenizer.model; empty for byte-level BPE.
    """

    hf: PreTrainedTokenizerFast
    ends: tuple[str, ...]
    pre: str = ""
    pieces: tuple[Piece, ...] = ()


def _byte_level(
    pre: str,
    split: str | None,
    added: Sequence[AddedToken],
    ends: Sequence[str],
    *,
    bos: str | None = None,
    adds_bos: bool = False,
    normalizer: normalizers.Normalizer | None = None,
    digits: bool = False,
    ignore_merges: bool = False,
    first: Sequence[AddedToken] = (),
) -> Remade:
    """Return a byte-level BPE tokenizer; ``first`` are added tokens with the lowest ids."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    steps = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=700,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=list(first),
            show_progress=False,
        ),
    )
    _add(backend, added)
    if adds_bos and bos is not None:
        _prepend_bos(backend, bos)
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=ends[0])
    return Remade(hf, tuple(ends), pre)


def _sentencepiece(
    added: Sequence[AddedToken],
    ends: Sequence[str],
    *,
    first: Sequence[str] = ("<unk>", "<s>", "</s>"),
    user_defined: Sequence[str] = (),
    bos: str = "<s>",
    prefixes: bool = True,
    merges_in_token_order: bool = False,
) -> Remade:
    """Return a SentencePiece BPE tokenizer with byte fallback, as converted by transformers.

    Args:
        first: the control tokens with the lowest ids.
        user_defined: tokens of the SentencePiece model that are never split.
        prefixes: whether text gets a space in front.
        merges_in_token_order: whether the merges were converted without scores.
    """
    pieces: list[Piece] = [(text, 0.0, CONTROL) for text in first]
    pieces[first.index("<unk>")] = "<unk>", 0.0, UNKNOWN
    pieces += [(text, 0.0, USER_DEFINED) for text in user_defined]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    known = {text for text, _, _ in pieces}
    learned = [text for text in _sentencepiece_vocabulary() if text not in known]
    pieces += [(text, -float(i), NORMAL) for i, text in enumerate(learned)]
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    backend = Tokenizer(
        models.BPE(
            vocab,
            generate_merges(vocab, None if merges_in_token_order else scores),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.normalizer = spaces
    if prefixes:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    special = [AddedToken(text, special=True, normalized=False) for text in first]
    own = [AddedToken(text, special=False, normalized=False) for text in user_defined]
    _add(backend, [*special, *own, *added])
    _prepend_bos(backend, bos)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=ends[0], unk_token="<unk>"
    )
    return Remade(hf, tuple(ends), pieces=tuple(pieces))


@cache
def _sentencepiece_vocabulary() -> tuple[str, ...]:
    """Return learned pieces in the order of SentencePiece: merged ones, then characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    backend.train_from_iterator((text.replace("\n", " ") for text in TEXT), trainer)
    vocab = backend.get_vocab()
    return tuple(sorted(vocab, key=lambda piece: (len(piece) == 1, vocab[piece])))


def _add(backend: Tokenizer, added: Sequence[AddedToken]) -> None:
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def _prepend_bos(backend: Tokenizer, bos: str) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, backend.token_to_id(bos))],
    )


def _control(*texts: str, rstrip: bool = False) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False, rstrip=rstrip) for text in texts]


def _plain(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=False, normalized=False) for text in texts]


def _gemma3() -> Remade:
    spaces = ["▁" * num for num in range(2, 6)]
    return _sentencepiece(
        _control("<start_of_turn>", "<end_of_turn>"),
        ["<eos>", "<end_of_turn>"],
        first=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        user_defined=["[multimodal]", "<unused0>", "\n\n", "\n\n\n", *spaces, "<table>", "<h1>"],
        bos="<bos>",
        prefixes=False,
        merges_in_token_order=True,
    )


def _phi3() -> Remade:
    added = [
        AddedToken("</s>", special=False, normalized=False, rstrip=True),
        *_control("<|endoftext|>"),
        *_control("<|assistant|>", "<|end|>", "<|user|>", "<|system|>", rstrip=True),
    ]
    return _sentencepiece(added, ["<|end|>", "<|endoftext|>"])


_IM = ("<|im_start|>", "<|im_end|>")
# Model -> what makes its tokenizer.
REMADE: dict[str, Callable[[], Remade]] = {
    "Llama 2": lambda: _sentencepiece([], ["</s>"]),
    "Llama 3": lambda: _byte_level(
        "llama-bpe",
        _CL100K,
        _control(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
        ),
        ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
        bos="<|begin_of_text|>",
        adds_bos=True,
        ignore_merges=True,
    ),
    "SmolLM2": lambda: _byte_level(
        "smollm",
        None,
        [],
        ["<|im_end|>", "<|endoftext|>"],
        bos="<|im_start|>",
        digits=True,
        first=_control("<|endoftext|>", *_IM),
    ),
    "Mistral": lambda: _sentencepiece(
        [],
        ["</s>"],
        first=("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    ),
    "Mistral Nemo": lambda: _byte_level(
        "tekken",
        _TEKKEN,
        [],
        ["</s>"],
        bos="<s>",
        adds_bos=True,
        ignore_merges=True,
        first=_control("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
    ),
    "Qwen2": lambda: _byte_level(
        "qwen2",
        _QWEN,
        [*_control("<|endoftext|>", *_IM), *_plain("<tool_call>", "</tool_call>")],
        ["<|im_end|>", "<|endoftext|>"],
        normalizer=normalizers.NFC(),
    ),
    "Qwen3": lambda: _byte_level(
        "qwen2",
        _QWEN,
        [
            *_control("<|endoftext|>", *_IM),
            *_plain("<tool_call>", "</tool_call>", "<think>", "</think>"),
        ],
        ["<|im_end|>", "<|endoftext|>"],
        normalizer=normalizers.NFC(),
    ),
    "Gemma 3": _gemma3,
    "Phi-3": _phi3,
    "Phi-4": lambda: _byte_level(
        "dbrx",
        _CL100K,
        _control("<|endoftext|>", *_IM, "<|im_sep|>"),
        ["<|im_end|>", "<|endoftext|>"],
        bos="<|endoftext|>",
    ),
    "Phi-4-mini": lambda: _byte_level(
        "gpt-4o",
        _O200K,
        _control("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"),
        ["<|end|>", "<|endoftext|>"],
        bos="<|endoftext|>",
    ),
    "OLMo 2": lambda: _byte_level(
        "dbrx",
        _CL100K,
        _control("<|endoftext|>", "<|user|>", "<|assistant|>"),
        ["<|endoftext|>"],
        bos="<|endoftext|>",
    ),
}


@cache
def remade(model: str) -> Remade:
    """Return the tokenizer of a model of ``REMADE``."""
    return REMADE[model]()
