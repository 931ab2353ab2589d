"""The target that a kernel is chosen for."""

from types import SimpleNamespace

import jax
import pytest

from kvflow_jax.models.families import PRESETS
from kvflow_jax.models.kernels.base import KernelTarget


@pytest.mark.parametrize(
    ("device", "capability"),
    [(SimpleNamespace(compute_capability="9.0"), "9.0"), (SimpleNamespace(), "")],
    ids=["NVIDIA GPU", "device without capability"],
)
def test_the_local_target_describes_this_process(monkeypatch, device, capability):
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    config = PRESETS["llama-3.1-8b"]
    expected = KernelTarget(jax.default_backend(), config, "bfloat16", 16, capability)
    assert KernelTarget.local(config, "bfloat16", 16) == expected
