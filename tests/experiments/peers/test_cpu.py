"""What is read of a CPU."""

from experiments.peers.cpu import Cpu

XEON = """processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_int8 sse

processor\t: 1
model name\t: another
"""


def test_the_first_cpu_is_read():
    cpu = Cpu.parse(XEON)
    assert cpu.name == "Intel(R) Xeon(R) Processor"
    assert cpu.flags == ("avx2", "avx512f", "avx512_bf16", "amx_int8")
    assert cpu.file_name == "intel_xeon_processor_6_207"


def test_a_limited_cpu_has_another_name_and_no_wider_extensions():
    cpu = Cpu.parse(XEON).limited()
    assert cpu.flags == ("avx2",)
    assert cpu.file_name == "intel_xeon_processor_6_207_avx2"


def test_a_machine_without_proc_has_no_flags():
    assert Cpu.parse("") == Cpu("unknown", (0, 0), ())
