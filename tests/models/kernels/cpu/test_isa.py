"""The instruction sets that the CPU kernels are built for."""

import platform

import pytest

from kvflow_jax.errors import ConfigError
from kvflow_jax.models.kernels.cpu import isa

AVX512 = isa.X86[2].features


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instructions")
def test_the_fastest_build_that_the_cpu_reports_comes_first():
    names = [found.name for found in isa.supported(AVX512)]
    assert names == ["avx512", "avx2", "native"]
    assert [found.name for found in isa.supported(frozenset())] == ["native"]


def test_an_unknown_instruction_set_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(isa.MAX_ISA, "sse9")
    if platform.machine() == "x86_64":
        with pytest.raises(ConfigError, match="KVFLOW_MAX_CPU_ISA=sse9 is not one of amx"):
            isa.supported(frozenset())
