"""Descriptions of accelerators, given to their compilers."""

import pytest

from experiments.device import chips
from experiments.device.chips import CHIPS


@pytest.fixture
def described(monkeypatch):
    """Replaces the compilers' topologies; returns the descriptions asked for."""
    calls = []

    class Topology:
        devices = (0, 1, 2, 3)

    def get_topology_desc(*args, **options):
        calls.append((args, options))
        return Topology

    monkeypatch.setattr(chips.topologies, "get_topology_desc", get_topology_desc)
    return calls


def test_a_tpu_is_described_by_its_name(described):
    assert len(CHIPS["v5e"].devices(1)) == 1
    assert described == [(("v5e:2x2",), {"platform": "tpu"})]


@pytest.mark.parametrize("name", ["t4", "l4", "h100"])
def test_a_gpu_is_described_by_its_data_sheet(described, name):
    chip = CHIPS[name]
    chip.devices(2)
    ((_, options),) = described
    config = options["target_config"]
    assert options["topology"] == "1x1x2"
    assert f'device_description_str: "{chip.name}"' in config
    assert ("ACCELERATED_FEATURES" in config) == (name == "h100")
    memory = int(chip.memory_gib / chips.SERVED_SHARE * chips.GIB)
    assert f"device_memory_size: {memory}" in config
