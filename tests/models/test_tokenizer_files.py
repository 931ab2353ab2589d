"""Tokenizers of Hugging Face folders: tokenizer.json counts; other forms load or say why not."""

import base64
import json
import random

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models import tokenizer_files
from kvflow_jax.models.loading.gguf_pre_tokenizers import PRE_TOKENIZERS
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import tiny

WORDS = ("the", "in", "123", "12", " ", "  ", "\n", "\t", "</s>", "<|end|>", "café", "'s", "你好")
WORDS += ("_x", "ﬁ", "e\u0301", "THE", "!?", "🙂", "▁", "<think>")


def byte_level(pre_tokenizer, normalizer=None, *, post=None, ignore_merges=False):
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"<s>": 256, "</s>": 257}
    merges = [
        ("1", "2"),
        ("12", "3"),
        ("Ġ", "1"),
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "Ġ"),
        ("Ġ", "the"),
    ]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(["<s>", "</s>", AddedToken("<|end|>", rstrip=True, special=True)])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("café")])
    if post is not None:
        backend.post_processor = post
    return backend


def split(*patterns, use_regex=False):
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*splits, last])


def bos():
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 256)]
    )


def sentencepiece(*normalizer, pre_tokenizer=None, strip=1):
    backend = tiny.sentencepiece_tokenizer().backend_tokenizer
    if normalizer:
        backend.normalizer = normalizers.Sequence(list(normalizer))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)
    return backend


DIGITS = pre_tokenizers.Digits(individual_digits=True)
SPACES = normalizers.Replace(" ", "▁")
DESIGNS = {
    "GPT-2": byte_level(split(use_regex=True)),
    "SmolLM2": byte_level(
        pre_tokenizers.Sequence([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ),
    "Llama 3": byte_level(split(*PRE_TOKENIZERS["llama3"].splits), post=bos(), ignore_merges=True),
    "Qwen 2": byte_level(split(*PRE_TOKENIZERS["qwen2"].splits), normalizers.NFC()),
    "Tekken": byte_level(split(*PRE_TOKENIZERS["tekken"].splits), ignore_merges=True),
    "GPT-4o": byte_level(split(*PRE_TOKENIZERS["gpt-4o"].splits)),
    "DeepSeek": byte_level(split(r"\p{N}{1,3}", r"[一-龥]+", r"\s+")),
    "llama.cpp's default": byte_level(split(*PRE_TOKENIZERS["default"].splits)),
    "prefix space": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "OLMo": byte_level(split(use_regex=True), normalizers.NFC()),
    "NFKC": byte_level(split(*PRE_TOKENIZERS["qwen2"].splits), normalizers.NFKC()),
    "lower case": byte_level(split(use_regex=True), normalizers.Lowercase()),
    "punctuation": byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), split(use_regex=True)])
    ),
    "Llama 2": sentencepiece(normalizers.Prepend("▁"), SPACES),
    "Gemma": sentencepiece(SPACES, strip=0),
    "Gemma, split": sentencepiece(
        SPACES, pre_tokenizer=pre_tokenizers.Split("▁", "merged_with_previous"), strip=0
    ),
    "Mistral": sentencepiece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "Metaspace, always": sentencepiece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    ),
    "no prefix": sentencepiece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never", split=True), strip=0
    ),
    "NFKC and Llama 2": sentencepiece(normalizers.NFKC(), normalizers.Prepend("▁"), SPACES),
}
# Families and classes whose tokenizer transformers builds anew from vocabulary and merges.
CLASSES = (
    ("llama", "LlamaTokenizerFast"),
    ("llama", "GPT2Tokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "PreTrainedTokenizerFast"),
    ("gemma3_text", "GemmaTokenizer"),
    ("mistral", "LlamaTokenizer"),
)


def write(folder, family, class_name, **settings):
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": class_name} if class_name else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | roles | settings))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return folder


@pytest.mark.parametrize("design", DESIGNS)
def test_tokenizer_json_is_what_counts(design, tmp_path):
    backend = DESIGNS[design]
    backend.save(str(tmp_path / "tokenizer.json"))
    generator = random.Random(design)
    texts = ["".join(generator.choices(WORDS, k=generator.randrange(1, 12))) for _ in range(5000)]
    expected = [encoding.ids for encoding in backend.encode_batch(texts)]
    for family, class_name in generator.sample(CLASSES, 2):
        tokenizer = Tokenizer.from_folder(write(tmp_path, family, class_name))
        assert [tokenizer.encode(text) for text in texts] == expected
    accents = {i for i, one in backend.get_added_tokens_decoder().items() if one.content == "café"}
    for ids in expected[:500]:
        if accents.isdisjoint(ids):
            assert tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("word", ["đem", "naïve", "<tool_début>", "«tool»", "č1"])
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_keep_their_accents(word, special):
    hf = tiny.byte_level_tokenizer()
    hf.add_tokens([AddedToken(word, special=special)])
    tokenizer = Tokenizer(hf)
    ids = tokenizer.encode(f"the {word} é")
    assert hf.convert_tokens_to_ids(word) in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"the {word} é"
    assert tokenizer.token_bytes(hf.convert_tokens_to_ids(word)) == word.encode()


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False, "add_eos_token": True}])
def test_bos_is_that_of_the_file(settings, tmp_path):
    DESIGNS["Llama 3"].save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(write(tmp_path, "llama", "LlamaTokenizer", **settings))
    assert tokenizer.encode("the")[0] == 256


def write_vocab(folder, *names):
    model = json.loads(tiny.byte_level_tokenizer().backend_tokenizer.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    texts = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": f"#version: 0.2\n{merges}\n"}
    for name in names:
        (folder / name).write_text(texts[name])


@pytest.mark.parametrize(
    ("family", "class_name"),
    [("qwen2", "Qwen2Tokenizer"), ("qwen2", None), ("llama", "GPT2Tokenizer")],
)
def test_a_folder_with_vocabulary_and_merges_loads(family, class_name, tmp_path):
    write_vocab(tmp_path, "vocab.json", "merges.txt")
    tokenizer = Tokenizer.from_folder(write(tmp_path, family, class_name))
    text = "the naïve 你\n in"
    assert tokenizer.encode("the") == tiny.byte_level_tokenizer().encode("the")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_and_merges_of_no_known_class_say_what_is_missing(tmp_path):
    write_vocab(tmp_path, "vocab.json", "merges.txt")
    with pytest.raises(ModelLoadError, match=r"must name a tokenizer_class that reads them"):
        Tokenizer.from_folder(write(tmp_path, "llama", None))


@pytest.mark.parametrize(
    ("present", "absent"), [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")]
)
def test_half_of_a_vocabulary_names_the_other_half(present, absent, tmp_path):
    write_vocab(tmp_path, present)
    assert not tokenizer_files.has_tokenizer(tmp_path)
    with pytest.raises(ModelLoadError, match=f"has {present}, and neither {absent} nor tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "package"), [(b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"YQ== 0\n", "tiktoken")]
)
def test_a_tokenizer_model_names_the_package_that_reads_it(content, package, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr(tokenizer_files, "_is_installed", lambda name: False)
    with pytest.raises(ModelLoadError, match=f"needs {package}.*pip install {package}"):
        Tokenizer.from_folder(write(tmp_path, "llama", "LlamaTokenizer"))


def test_mistrals_tekken_loads_with_its_bos(tmp_path):
    tokens = [bytes([i]) for i in range(256)] + [b"th"]
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(tokens)
    ]
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    tekken = {
        "config": {
            "pattern": PRE_TOKENIZERS["tekken"].splits[0],
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": len(vocab) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v3",
        },
        "vocab": vocab,
        "special_tokens": [
            {"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(special)
        ],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("the[INST]") == [1, 260, ord("e") + 4, 3]
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.decode(tokenizer.encode("the 你 é")) == "the 你 é"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "JSONDecodeError: Expecting value"),
        ("{}", "KeyError"),
        ('{"model": {"type": "BPE", "vocab": 7}}', "download it again: "),
        ("\ud7ff" * 10_000, "download it again: "),
    ],
)
def test_errors_of_other_libraries_are_one_line_that_names_the_files(content, part, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError) as caught:
        Tokenizer.from_folder(tmp_path)
    message = str(caught.value)
    assert "(tokenizer.json, tokenizer_config.json) cannot be read, download it again: " in message
    assert part in message
    assert "\n" not in message
    assert len(message) < 600


def test_the_chat_template_of_a_multimodal_model_is_read(tmp_path):
    """It is in a file that transformers reads for processors alone."""
    tiny.byte_level_tokenizer(chat_template=None).save_pretrained(tmp_path)
    assert Tokenizer.from_folder(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ bos_token }}"}))
    assert Tokenizer.from_folder(tmp_path).chat_template == "{{ bos_token }}"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert Tokenizer.from_folder(tmp_path).chat_template == "{{ eos_token }}"
