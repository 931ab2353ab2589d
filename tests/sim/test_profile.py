"""The roofline model: which work and which rate decide how long a step takes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.runtime.batch import Batch, BatchShape
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, SMOLLM2_135M
from kvflow_jax.sim.profile import ModelShape, Profile, work_of
from tests.support.tiny_engine import CONFIG


def prefill(num_tokens, context, *, tile=128):
    batch = Batch.empty(BatchShape(-(-num_tokens // tile), 0, tile), 64, 4)
    batch.query_start[:] = context + np.arange(0, num_tokens, tile)
    batch.query_len[:] = tile
    return batch


@pytest.mark.parametrize("shape", [LLAMA_3_1_8B, SMOLLM2_135M], ids=lambda shape: shape.name)
def test_steps_take_longer_with_tokens_and_with_context(shape):
    times = [A10G.step_s(shape, prefill(n, 0)) for n in (128, 512, 1024, 2048)]
    assert times == sorted(times)
    assert A10G.step_s(shape, prefill(512, 4096)) > A10G.step_s(shape, prefill(512, 0))


def test_a_prefill_is_bound_by_products_and_a_decode_step_by_weights():
    assert A10G.step_s(LLAMA_3_1_8B, prefill(2048, 0)) == pytest.approx(
        2048 * LLAMA_3_1_8B.flops_per_token / A10G.flops_per_s, rel=0.1
    )
    decode = Batch.empty(BatchShape(0, 1, 128), 64, 4)
    decode.query_len[:] = 1
    assert A10G.step_s(LLAMA_3_1_8B, decode) == pytest.approx(
        LLAMA_3_1_8B.weight_bytes / A10G.mem_bytes_per_s, rel=0.1
    )


def test_padding_is_computed_but_reads_no_kv():
    batch = prefill(256, 0)
    batch.query_len[1] = 0
    work = work_of(batch)
    assert (work.num_tokens, work.num_rows, work.num_read_tokens) == (256, 2, 128)
    assert work.num_pairs == 128 * 129 // 2


def test_a_query_attends_to_the_context_before_it():
    batch = prefill(128, 1000)
    assert work_of(batch).num_pairs == 128 * 1000 + 128 * 129 // 2
    assert work_of(batch).num_read_tokens == 1128


def test_the_parameters_of_known_models_are_counted():
    assert LLAMA_3_1_8B.param_bytes / 2 == pytest.approx(8.03e9, rel=0.01)
    assert SMOLLM2_135M.param_bytes / 4 == pytest.approx(134.5e6, rel=0.01)
    assert LLAMA_3_1_8B.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert SMOLLM2_135M.param_bytes == SMOLLM2_135M.weight_bytes  # tied: one matrix
    untied = replace(SMOLLM2_135M, is_tied=False)
    assert untied.param_bytes - untied.weight_bytes == 49152 * 576 * 4


def test_a_shape_of_a_configuration_has_its_sizes():
    shape = ModelShape.of("tiny", CONFIG, itemsize=4)
    assert (shape.name, shape.num_layers, shape.vocab_size) == ("tiny", 2, 300)
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * 12 * 4


def test_several_devices_are_faster_but_not_by_their_number():
    four = A10G.with_devices(4)
    assert A10G.with_devices(1) is A10G
    batch = prefill(2048, 0)
    speedup = A10G.step_s(LLAMA_3_1_8B, batch) / four.step_s(LLAMA_3_1_8B, batch)
    assert 3 < speedup < 4
    assert four.memory_bytes == 4 * A10G.memory_bytes
    assert four.launch_s > A10G.launch_s


def test_the_link_ratio_is_load_time_over_compute_time():
    ratio = A10G.link_ratio(LLAMA_3_1_8B)
    load_s = A10G.transfer_s(1000 * LLAMA_3_1_8B.kv_bytes_per_token) - A10G.link_latency_s
    compute_s = 1000 * LLAMA_3_1_8B.flops_per_token / A10G.flops_per_s
    assert ratio == pytest.approx(load_s / compute_s)
    assert A10G.copy_s(1 << 20) < A10G.transfer_s(1 << 20)


def test_a_profile_is_read_from_the_file_it_was_written_to(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"profile": A10G.to_dict()}))
    assert Profile.read(path) == A10G
