"""Flags of other servers that have another name here, or that are not needed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_TOOLS = "tool calls are always read, leave it out; --tool-call-parser chooses the syntax"
_REASONING = "reasoning is always split off, leave it out; --reasoning-parser chooses the syntax"
_PREFIXES = "prefixes are always cached, leave it out"
_CHUNKS = "prompts are always computed in chunks, leave it out"
_QUANTIZATION = (
    "it is --quantize int8, or int4 on CPU; else leave it out, --dtype is the weights' precision"
)
_TLS = "the server speaks HTTP alone; put a proxy in front for HTTPS"

# What to do about each.
FOREIGN_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        # Of vLLM.
        "--block-size": "it is --page-size",
        "--cpu-offload-gb": "it is --host-cache-gib, for the KV cache alone",
        "--enable-auto-tool-choice": _TOOLS,
        "--enable-chunked-prefill": _CHUNKS,
        "--enable-prefix-caching": _PREFIXES,
        "--enable-reasoning": _REASONING,
        "--enforce-eager": "every step is a compiled program, leave it out",
        "--gpu-memory-utilization": "it is --pool-gib, the size of the KV pool",
        "--kv-cache-dtype": "it is --dtype, also of weights that are not quantised",
        "--kv-offloading-size": "it is --host-cache-gib",
        "--num-gpu-blocks-override": "it is --num-pages",
        "--quantization": _QUANTIZATION,
        "--ssl-certfile": _TLS,
        "--ssl-keyfile": _TLS,
        "--swap-space": "it is --host-cache-gib",
        "--tensor-parallel-size": "it is --tensor-parallel",
        "--trust-remote-code": "code of a checkpoint is never run, leave it out",
        "--uvicorn-log-level": "it is --log-level",
        # Of SGLang.
        "--chunked-prefill-size": "it is --max-num-batched-tokens",
        "--context-length": "it is --max-model-len",
        "--hicache-ratio": "it is --host-cache-gib",
        "--hicache-size": "it is --host-cache-gib",
        "--max-queued-requests": "it is --max-waiting",
        "--max-running-requests": "it is --max-num-seqs",
        "--mem-fraction-static": "it is --pool-gib, the size of the KV pool",
        "--model-path": "it is --model",
        "--tp": "it is --tensor-parallel",
        "--tp-size": "it is --tensor-parallel",
        # Of llama.cpp.
        "--ctx-size": "it is --max-model-len",
        "--chat-template-file": "it is --chat-template",
        "--jinja": "chat templates are always used, leave it out",
        "--parallel": "it is --max-num-seqs",
    }
)
