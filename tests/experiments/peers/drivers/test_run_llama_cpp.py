"""llama.cpp's driver, over a fake of its C interface."""

import ctypes
import sys
from types import SimpleNamespace

import pytest

from experiments.peers.drivers import run_llama_cpp

VOCAB = 50


class FakeApi:
    """Its next token is the last one plus 1. It keeps the (token, position, sequence) computed."""

    def __init__(self):
        self.computed, self.open = [], 0

    def llama_backend_init(self):
        pass

    def llama_model_default_params(self):
        return None

    def llama_model_load_from_file(self, path, params):
        return None if path == b"missing" else "model"

    def llama_model_get_vocab(self, model):
        return model

    def llama_vocab_n_tokens(self, vocab):
        return VOCAB

    def llama_context_default_params(self):
        return SimpleNamespace()

    def llama_init_from_model(self, model, params):
        self.open += 1
        return params

    def llama_batch_init(self, size, embedding, num_sequences):
        fields = ("token", "pos", "n_seq_id", "logits")
        return SimpleNamespace(
            **{field: [0] * size for field in fields}, seq_id=[[0] for _ in range(size)]
        )

    def llama_decode(self, context, batch):
        rows = range(batch.n_tokens)
        self.computed.append([(batch.token[i], batch.pos[i], batch.seq_id[i][0]) for i in rows])
        self.tokens = list(batch.token)
        return 0

    def llama_get_logits_ith(self, context, row):
        logits = (ctypes.c_float * VOCAB)()
        logits[self.tokens[row] + 1] = 1.0
        return ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))

    def llama_batch_free(self, batch):
        pass

    def llama_free(self, context):
        self.open -= 1


@pytest.fixture
def api(monkeypatch):
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    return fake


def test_tokens_follow_each_other(api):
    engine = run_llama_cpp.build({"model": "file"})
    assert engine.greedy([1, 2], 3) == [3, 4, 5]
    assert api.computed == [[(1, 0, 0), (2, 1, 0)], [(3, 2, 0)], [(4, 3, 0)]]
    assert api.open == 0


def test_a_step_decodes_a_token_of_every_sequence(api, monkeypatch):
    monkeypatch.setattr(run_llama_cpp, "BATCH", 3)
    engine = run_llama_cpp.build({"model": "file"})
    engine.decode_step_s([[1, 2], [11, 12]], num_steps=1, repeats=1)
    assert api.computed == [
        [(1, 0, 0), (2, 1, 0), (11, 0, 1)],
        [(12, 1, 1)],
        [(3, 2, 0), (13, 2, 1)],
    ]
    api.computed.clear()
    engine.prefill_s([1])
    engine.cached_s([1], [2])
    assert api.computed == [[(1, 0, 0)], [(1, 0, 0)], [(2, 1, 0)]]


def test_a_file_that_cannot_be_loaded_ends_the_process(api):
    with pytest.raises(SystemExit, match="cannot load missing"):
        run_llama_cpp.build({"model": "missing"})
