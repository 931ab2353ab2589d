"""The choice of an attention kernel."""

import logging
from typing import get_args

import pytest

from kvflow_jax.api.load_config import Attention
from kvflow_jax.errors import ConfigError
from kvflow_jax.models import attention
from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels import AUTO, KERNELS, choose_attention, gpu_mosaic, gpu_paged
from kvflow_jax.models.kernels.base import KernelTarget


def target(platform, shape="llama-3.1-8b", dtype="bfloat16", page_size=16, capability="9.0"):
    capability = capability if platform == "gpu" else ""
    return KernelTarget(platform, PRESETS[shape], dtype, page_size, capability)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (target("cpu"), "blocks"),
        (target("gpu"), "gpu-mosaic"),
        (target("gpu", capability="8.9"), "blocks"),
        (target("gpu", dtype="float32"), "blocks"),
        (target("tpu"), "tpu-ragged"),
        (target("tpu", shape="llama-3.2-1b"), "blocks"),
        (target("tpu", dtype="float16"), "blocks"),
    ],
    ids=str,
)
def test_auto_chooses_the_first_kernel_that_supports_the_target(where, chosen):
    assert choose_attention("auto", where) is KERNELS[chosen].attend


def test_the_log_names_the_choice_and_the_reasons(caplog):
    caplog.set_level(logging.INFO, logger="kvflow_jax")
    choose_attention("auto", target("tpu", shape="llama-3.2-1b"))
    assert caplog.messages == [
        "attention tpu-ragged declined: head_dim 64 is not a multiple of 128",
        "attention on tpu: blocks",
    ]


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("flash", target("cpu"), "no attention 'flash'; there are: auto, reference"),
        ("tpu-ragged", target("cpu"), "'tpu-ragged' cannot be used: it runs on tpu, not on cpu"),
        ("tpu-ragged", target("tpu", "smollm2-135m"), "head_dim 64 is not a multiple of 128"),
        ("tpu-ragged", target("tpu", dtype="float16"), "not float16"),
        ("tpu-ragged", target("tpu", page_size=8), "page_size 8 is below 16"),
        ("gpu-paged", target("tpu"), "it runs on gpu, not on tpu"),
        ("gpu-mosaic", target("cpu"), "it runs on gpu, not on cpu"),
        ("gpu-mosaic", target("gpu", capability="8.9"), "needs compute capability 9, not 8.9"),
        ("gpu-mosaic", target("gpu", capability="10.0"), "needs compute capability 9, not 10.0"),
        ("gpu-mosaic", target("gpu", dtype="float32"), "not float32"),
        ("gpu-mosaic", target("gpu", page_size=24), "24 is not a power of two of at least 8"),
    ],
)
def test_a_named_kernel_that_does_not_support_the_target_is_an_error(name, where, message):
    with pytest.raises(ConfigError, match=message):
        choose_attention(name, where)


def test_a_named_kernel_is_chosen_if_it_supports_the_target():
    assert choose_attention("gpu-mosaic", target("gpu")) is gpu_mosaic.attend
    assert choose_attention("gpu-paged", target("gpu")) is gpu_paged.attend
    assert choose_attention("reference", target("cpu")) is attention.attend_reference


def test_the_command_line_lists_all_kernels():
    assert (AUTO, *KERNELS) == get_args(Attention)
