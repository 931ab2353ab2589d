"""Tokenizers of other libraries are read as those libraries read them.

Each test needs a package that kvflow-jax does not depend on, and is skipped without it:
``pip install sentencepiece protobuf tiktoken mistral-common``.
"""

import base64
import json
import random

import pytest

from kvflow_jax.models.loading.gguf_pre_tokenizers import PRE_TOKENIZERS
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models.remade_tokenizers import TEXT, remade

WORDS = ("the", "License", "123", "1234567", " ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", "café")
WORDS += ("e\u0301", "'s", "你好", "_x", "ﬁ", "!?", "🙂", "AbCd", "don't", "▁", "①")
NUM_TEXTS = 500

_GEMMA = {
    **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
    "add_dummy_prefix": False,
    "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁"],
}
# Settings of sentencepiece's trainer, and fields of tokenizer_config.json.
MODELS = {
    "Llama 2": ({}, {"tokenizer_class": "LlamaTokenizer"}),
    "without tokenizer_config.json": ({}, None),
    "Mistral": ({"control_symbols": ["[INST]", "[/INST]"]}, {"tokenizer_class": "LlamaTokenizer"}),
    "Gemma": (_GEMMA, {"tokenizer_class": "GemmaTokenizer"}),
    "extra white space": (
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"tokenizer_class": "LlamaTokenizer"},
    ),
    "a class of another form": ({}, {"tokenizer_class": "Qwen2Tokenizer"}),
}
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def texts(seed):
    generator = random.Random(seed)
    return [
        "".join(generator.choices(WORDS, k=generator.randrange(1, 10))) for _ in range(NUM_TEXTS)
    ]


def train(folder, **settings):
    """Write the tokenizer.model of a folder; return sentencepiece's own tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    common = {
        "vocab_size": 700,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "minloglevel": 2,
        "num_threads": 1,
    }
    lines = (text.replace("\n", " ") for text in TEXT)
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, **{**common, **settings}
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write(folder, family, settings):
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_model_is_read_as_by_sentencepiece(name, tmp_path):
    settings, config = MODELS[name]
    theirs = train(tmp_path, **settings)
    roles = _ROLES if name != "Gemma" else _ROLES | {"bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = write(tmp_path, "llama", None if config is None else roles | config)
    for text in texts(name):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        assert tokenizer.decode(ids) == theirs.decode(ids)
    assert tokenizer.encode("the")[0] == theirs.bos_id()
    assert tokenizer.eos_token_ids == (theirs.eos_id(),)
    assert tokenizer.vocab_size == theirs.get_piece_size()


def test_added_tokens_of_a_tokenizer_model_split_text(tmp_path):
    """As Phi-3 has them."""
    theirs = train(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|end|>": 700, "<|user|>": 701}))
    added = {
        str(700 + i): {"content": text, "special": True, "rstrip": True, "normalized": False}
        for i, text in enumerate(("<|end|>", "<|user|>"))
    }
    config = _ROLES | {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
    tokenizer = write(tmp_path, "phi3", config | {"eos_token": "<|end|>"})
    ids = tokenizer.encode("the<|end|>\n<|user|>\nLicense")
    assert ids == [1, *theirs.encode("the"), 700, 701, *theirs.encode("License")]
    assert tokenizer.eos_token_ids == (700,)


def byte_tokens(model):
    """Return the tokens of a remade byte-level tokenizer as bytes, single bytes first."""
    hf = Tokenizer(remade(model).hf)
    tokens = [
        hf.token_bytes(i) for i in range(hf.vocab_size) if i not in hf.hf.added_tokens_decoder
    ]
    return [bytes([byte]) for byte in range(256)] + [token for token in tokens if len(token) > 1]


def test_a_tokenizer_model_of_tiktoken_is_read_as_by_tiktoken(tmp_path):
    """Its file has base64 and ranks, as Meta's of Llama 3."""
    tiktoken = pytest.importorskip("tiktoken")
    tokens = byte_tokens("Llama 3")
    special = {"<|begin_of_text|>": len(tokens), "<|eot_id|>": len(tokens) + 1}
    theirs = tiktoken.Encoding(
        "llama3",
        pat_str=PRE_TOKENIZERS["llama3"].splits[0],
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens=special,
    )
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "added_tokens_decoder": {
            str(i): {"content": text, "special": True, "normalized": False}
            for text, i in special.items()
        },
    }
    tokenizer = write(tmp_path, "llama", config)
    for text in texts("tiktoken"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|eot_id|>") == [len(tokens), len(tokens) + 1]


@pytest.mark.parametrize("version", ["v3", "v7"])
def test_tekken_is_read_as_by_mistral_common(version, tmp_path):
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    tokens, num_special = byte_tokens("Mistral Nemo"), 20
    special = ["<unk>", "<s>", "</s>", "[INST]", *(f"<SPECIAL_{i}>" for i in range(4, num_special))]
    file = {
        "config": {
            "pattern": PRE_TOKENIZERS["tekken"].splits[0],
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + num_special,
            "default_num_special_tokens": num_special,
            "version": version,
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(tokens)
        ],
    }
    # The first versions do not list them.
    if version != "v3":
        file["special_tokens"] = [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(special)
        ]
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    theirs = tekken.Tekkenizer.from_file(tmp_path / "tekken.json")
    tokenizer = write(tmp_path, "mistral", None)
    for text in texts(version):
        ids = theirs.encode(text, bos=True, eos=False)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == theirs.decode(ids)
    assert tokenizer.encode("[INST]") == [1, 3]
    assert tokenizer.vocab_size == theirs.n_words
    assert tokenizer.eos_token_ids == (theirs.eos_id,)
