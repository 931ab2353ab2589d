"""Machines and models are found by name or in a file; unknown names list the known ones."""

import json

import pytest

from kvflow_jax.sim.machines import (
    A10G,
    H100_PCIE,
    MACHINES,
    SHAPES,
    UnknownNameError,
    machine,
    pool_tokens,
    shape,
)


def test_every_name_is_found():
    assert [machine(name) for name in MACHINES] == list(MACHINES.values())
    assert [shape(name) for name in SHAPES] == list(SHAPES.values())


def test_several_devices_are_named_by_their_number():
    four = machine("h100-pcie x4")
    assert four.name == "h100-pcie x4"
    assert four.memory_bytes == 4 * H100_PCIE.memory_bytes


@pytest.mark.parametrize("count", ["0", "-1", "1025", "two", "4.0", "\u0664"])
def test_a_number_of_devices_out_of_range_is_unknown(count):
    with pytest.raises(UnknownNameError, match="NAME xN"):
        machine(f"h100-pcie x{count}")


@pytest.mark.parametrize(("find", "known"), [(machine, "tpu-v6e"), (shape, "qwen2.5-32b")])
def test_an_unknown_name_lists_the_known_ones(find, known):
    with pytest.raises(UnknownNameError, match=rf"unknown \w+ 'abacus'; known: .*{known}"):
        find("abacus")


def test_a_machine_may_be_a_file_by_path_or_by_name(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"profile": A10G.to_dict()}))
    assert machine(str(path)) == machine("mine", {"mine": path}) == A10G


@pytest.mark.parametrize("text", ["", "[]", '{"profile": {"name": "x"}}'])
def test_a_file_without_a_profile_is_unknown(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UnknownNameError):
        machine(str(path))


def test_the_pool_is_what_the_weights_leave():
    small, large = shape("llama-3.1-8b"), shape("llama-3.1-70b")
    num_tokens = pool_tokens(H100_PCIE, small)
    used = num_tokens * small.kv_bytes_per_token + small.param_bytes
    assert 0.87 < used / H100_PCIE.memory_bytes <= 0.88
    assert pool_tokens(H100_PCIE, large) < 0
    assert pool_tokens(machine("h100-pcie x4"), large) > 100_000
