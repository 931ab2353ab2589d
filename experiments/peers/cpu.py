"""The CPU that the figures belong to: its name, and the extensions that decide about speed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Extensions that engines choose their kernels by.
FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512vbmi", "avx512_bf16", "avx512_vnni"),
    *("amx_bf16", "amx_int8"),
)
# What makes each engine, and the libraries in it, compute as on a CPU without AVX-512. Kernels that
# vLLM has compiled for AVX-512 alone know no limit.
AVX2_VARIABLES = {
    "KVFLOW_MAX_CPU_ISA": "avx2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@dataclass(frozen=True)
class Cpu:
    """A CPU as Linux describes it.

    Attributes:
        name: model name.
        model: family and model number; a virtual machine may hide which CPU a name stands for.
        flags: those of ``FLAGS`` that it has.
        is_limited: engines use none but AVX2 of those that it has.
    """

    name: str
    model: tuple[int, int]
    flags: tuple[str, ...]
    is_limited: bool = False

    @classmethod
    def parse(cls, cpuinfo: str) -> Cpu:
        """Read the first CPU of the text of /proc/cpuinfo; fields that are not there are empty."""
        first = cpuinfo.partition("\n\n")[0]
        fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", first, re.MULTILINE))
        has = fields.get("flags", "").split()
        return cls(
            name=fields.get("model name", "unknown"),
            model=(int(fields.get("cpu family", 0)), int(fields.get("model", 0))),
            flags=tuple(flag for flag in FLAGS if flag in has),
        )

    @property
    def file_name(self) -> str:
        """Name and model number as a part of a file's name."""
        words = re.sub(r"\(\w+\)", "", self.name.lower())
        limit = " avx2" if self.is_limited else ""
        return re.sub(r"\W+", "_", f"{words} {self.model[0]} {self.model[1]}{limit}").strip("_")

    def limited(self) -> Cpu:
        """Return this CPU with the extensions of AVX2 alone; see ``AVX2_VARIABLES``."""
        flags = tuple(flag for flag in self.flags if flag == "avx2")
        return replace(self, flags=flags, is_limited=True)


def this_cpu() -> Cpu:
    """Return the CPU of this machine; one without name and flags where there is no /proc."""
    return Cpu.parse(CPUINFO.read_text() if CPUINFO.exists() else "")
