"""A .gguf file is the model of the folder that it was converted from: tokens, ends and logits."""

import json
import random

import numpy as np
import pytest

pytest.importorskip("gguf")

from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.hf_config import read_config_file
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model
from kvflow_jax.models.rope import inverse_frequencies
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import llama_cpp, tiny
from tests.models.remade_tokenizers import REMADE, remade
from tests.models.sources import folder_weights, read_all

VOCAB_SIZE = 832  # more than any of the tokenizers has
NUM_TEXTS = 300


def config(family, **changes):
    return {**FAMILIES[family].tiny, "vocab_size": VOCAB_SIZE, **changes}


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# Model -> its tokenizer, and config.json.
MODELS = {
    "Llama 2": ("Llama 2", config("llama", num_key_value_heads=4, tie_word_embeddings=False)),
    "Llama 3.1": (
        "Llama 3",
        config("llama", rope_theta=5e5, rope_scaling=_LLAMA3_ROPE, tie_word_embeddings=False),
    ),
    "Llama 3.2": ("Llama 3", config("llama", rope_theta=5e5, rope_scaling=_LLAMA3_ROPE)),
    "SmolLM2": ("SmolLM2", config("llama")),
    "Llama, biases": ("Llama 2", config("llama", attention_bias=True, mlp_bias=True)),
    "Mistral": ("Mistral", config("mistral", sliding_window=None)),
    "Mistral Nemo": ("Mistral Nemo", config("mistral", sliding_window=None, head_dim=24)),
    "Qwen2": ("Qwen2", config("qwen2")),
    "Qwen2, YaRN": ("Qwen2", config("qwen2", rope_scaling=_YARN)),
    "Qwen2, YaRN with its own settings": (
        "Qwen2",
        config(
            "qwen2",
            rope_scaling=_YARN | {"attention_factor": 0.9, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
    ),
    "Qwen3": ("Qwen3", config("qwen3")),
    "Qwen3-MoE": ("Qwen3", config("qwen3-moe")),
    "Gemma 3": (
        "Gemma 3",
        config(
            "gemma3",
            num_hidden_layers=7,
            sliding_window_pattern=6,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
    ),
    "Phi-3": ("Phi-3", config("phi3", original_max_position_embeddings=256)),
    "Phi-3 128k": (
        "Phi-3",
        config(
            "phi3",
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            max_position_embeddings=128,
            rope_scaling=_LONGROPE,
        ),
    ),
    "Phi-4": ("Phi-4", config("phi3", sliding_window=None, original_max_position_embeddings=256)),
    "Phi-4-mini": (
        "Phi-4-mini",
        config(
            "phi3",
            partial_rotary_factor=0.75,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            original_max_position_embeddings=32,
            max_position_embeddings=128,
            rope_scaling=_LONGROPE,
        ),
    ),
    "OLMo 2": ("OLMo 2", config("olmo2")),
}


def write(folder, name, *, dtype="float32", **settings):
    """Write the folder of a model; return it."""
    tokenizer, hf = MODELS[name]
    made = remade(tokenizer)
    ends = [made.hf.convert_tokens_to_ids(end) for end in made.ends]
    hf = {**hf, "bos_token_id": made.hf.bos_token_id, "eos_token_id": ends}
    tiny.write_folder(folder, hf, weights=tiny.hf_weights(hf, dtype=dtype), tokenizer=False)
    made.hf.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def texts(seed, tokens):
    words = ("the", "License", "123", "1234567", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n")
    words += (
        "café",
        "e\u0301",
        "'s",
        "I'LL",
        "你好",
        "_x",
        "ﬁ",
        "!?",
        "🙂",
        "▁",
        "▁▁",
        "HelloWorld",
    )
    generator = random.Random(seed)
    return [
        "".join(generator.choices([*words, *tokens], k=generator.randrange(1, 12)))
        for _ in range(NUM_TEXTS)
    ]


@pytest.mark.parametrize("name", REMADE)
def test_texts_have_the_same_tokens_and_generations_the_same_ends(name, tmp_path):
    model = next(model for model, (tokenizer, _) in MODELS.items() if tokenizer == name)
    folder = write(tmp_path / "folder", model)
    made = remade(name)
    path = llama_cpp.convert(folder, tmp_path / "model.gguf", made)
    ours, theirs = GgufFile(path), Tokenizer.from_folder(folder)
    tokenizer = Tokenizer(ours.tokenizer(), ours.config().eos_token_ids)
    added = [token.content for token in made.hf.added_tokens_decoder.values()]
    for text in texts(name, added):
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
        # Gemma's <unused0> is a control token to llama.cpp alone.
        for skips in (True, False) if "<unused" not in text else (False,):
            decoded = tokenizer.decode(ids, skip_special_tokens=skips)
            assert decoded == theirs.decode(ids, skip_special_tokens=skips)
    assert tokenizer.vocab_size == theirs.vocab_size
    # llama.cpp ends at </s> wherever it is an added token, as in Phi-3.
    extra = {2} if name == "Phi-3" else set()
    assert {*tokenizer.eos_token_ids} == {*theirs.eos_token_ids} | extra
    assert tokenizer.hf.bos_token_id == theirs.hf.bos_token_id


@pytest.mark.parametrize("name", ["Llama 2", "Mistral"])
def test_a_file_without_scores_merges_in_the_order_of_its_tokens(name, tmp_path):
    """The converter has none where there is no tokenizer.model."""
    folder, made = write(tmp_path / "folder", name), remade(name)
    path = llama_cpp.convert(folder, tmp_path / "model.gguf", made, without_scores=True)
    tokenizer, theirs = Tokenizer(GgufFile(path).tokenizer()), Tokenizer.from_folder(folder)
    for text in texts(name, ["<s>", "</s>"]):
        assert tokenizer.encode(text) == theirs.encode(text), text


def rounding(kind, weight):
    """Return the bound of what a type rounds the elements of a weight by."""
    if kind == llama_cpp.Q8_0:
        # Half a step, and the rounding of the scale to float16.
        return np.abs(weight).max() * (1 / 254 + 1 / 2000)
    return np.abs(weight) / 256 if kind == llama_cpp.BF16 else 0


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_of_the_folder(name, tmp_path):
    folder, made = write(tmp_path / "folder", name, dtype="float16"), remade(MODELS[name][0])
    theirs = Model.build(read_config_file(folder))
    expected = read_all(theirs, folder_weights(theirs, folder))
    for kind in (llama_cpp.F16, llama_cpp.BF16, llama_cpp.Q8_0):
        file = GgufFile(llama_cpp.convert(folder, tmp_path / "model.gguf", made, kind=kind))
        model = Model.build(file.config())
        weights = read_all(model, NamedWeights(model, file.tensors(model)))
        assert weights.keys() == expected.keys()
        for key, weight in weights.items():
            # Gemma's converter drops the rows that no token has.
            expected_part = expected[key][: len(weight)]
            within = np.abs(weight - expected_part) <= rounding(kind, expected_part)
            assert within.all(), (key, kind)
        assert model.config.max_model_len == theirs.config.max_model_len
        assert model.config.windows == theirs.config.windows
        ropes = [config.rope for config in (model.config, theirs.config)]
        frequencies = [inverse_frequencies(rope, model.config.head_dim) for rope in ropes]
        np.testing.assert_allclose(*frequencies, rtol=1e-6)
        assert ropes[0].attention_factor == pytest.approx(ropes[1].attention_factor)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_the_folder(name, tmp_path):
    folder, made = write(tmp_path / "folder", name, dtype="float16"), remade(MODELS[name][0])
    path = llama_cpp.convert(folder, tmp_path / "model.gguf", made, kind=llama_cpp.F16)
    tokens = np.random.default_rng(0).integers(0, 600, 100).astype(np.int32)
    ours, theirs = (tiny.logits_of(each, tokens, dtype="float32") for each in (path, folder))
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], atol=1e-3)


# The experts of a mixture that a token takes change with any rounding: it is not among these.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama 3.1", "Qwen2", "Gemma 3", "Phi-3", "OLMo 2"])
def test_8_bits_change_the_logits_by_a_tenth_of_the_largest(name, tmp_path):
    folder, made = write(tmp_path / "folder", name), remade(MODELS[name][0])
    path = llama_cpp.convert(folder, tmp_path / "model.gguf", made, kind=llama_cpp.Q8_0)
    tokens = np.random.default_rng(0).integers(0, 600, 100).astype(np.int32)
    ours, theirs = (
        tiny.logits_of(each, tokens, dtype="float32", quantize="none") for each in (path, folder)
    )
    difference = np.abs(ours - theirs[:, : ours.shape[1]])
    assert difference.max() < 0.1 * np.abs(theirs).max()
