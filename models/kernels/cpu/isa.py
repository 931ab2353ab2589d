"""The instruction sets that the CPU kernels are compiled for, and those that this CPU reports."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from kvflow_jax.errors import ConfigError

MAX_ISA = "KVFLOW_MAX_CPU_ISA"
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX512_BF16 = (*_AVX512, "avx512_bf16")
_AMX = (*_AVX512_BF16, "amx_tile", "amx_bf16")
_OPTIONS = {"amx_tile": "amx-tile", "amx_bf16": "amx-bf16"}


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One build of the kernels.

    Attributes:
        features: what the CPU must report, as Linux names it in /proc/cpuinfo.
        flags: compiler flags.
        has_fast_bfloat16: whether products of bfloat16 are several times as fast as of float32.
    """

    name: str
    features: frozenset[str]
    flags: tuple[str, ...]
    has_fast_bfloat16: bool = False

    @classmethod
    def of_x86(
        cls, name: str, features: tuple[str, ...], *, has_fast_bfloat16: bool = False
    ) -> InstructionSet:
        flags = tuple(f"-m{_OPTIONS.get(name, name.replace('_', ''))}" for name in features)
        return cls(name, frozenset(features), flags, has_fast_bfloat16)


X86 = (
    InstructionSet.of_x86("amx", _AMX, has_fast_bfloat16=True),
    InstructionSet.of_x86("avx512-bf16", _AVX512_BF16, has_fast_bfloat16=True),
    InstructionSet.of_x86("avx512", _AVX512),
    InstructionSet.of_x86("avx2", _AVX2),
)
# What the compiler finds for itself, on other CPUs.
NATIVE = InstructionSet("native", frozenset(), ("-march=native",))


def cpu_features() -> frozenset[str]:
    """Return the features of this machine's CPUs, as Linux names them; empty if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def supported(features: frozenset[str]) -> tuple[InstructionSet, ...]:
    """Return the builds that a CPU with these features may run, fastest first.

    The environment variable KVFLOW_MAX_CPU_ISA names the first one to try.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return (NATIVE,)
    names = [isa.name for isa in X86]
    wanted = os.environ.get(MAX_ISA, names[0])
    if wanted not in names:
        raise ConfigError(f"{MAX_ISA}={wanted} is not one of {', '.join(names)}")
    x86 = X86[names.index(wanted) :]
    return (*(isa for isa in x86 if isa.features <= features), NATIVE)
