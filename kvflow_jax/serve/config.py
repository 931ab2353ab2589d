"""The settings of a server process, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvflow_jax.engine.cache_config import CacheConfig


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of one server process; for None, the engine decides from the model and memory.

    Args:
        model: name of a known model, or a folder; requests may also use it as a model name.
        served_model_name: model name in requests and answers; None: the loaded model's own name.
        host, port: address to listen on; port 0: any free port.
        api_keys: Bearer keys; empty: no authentication. Several keys are tenants that share no
            cache.
        max_model_len: maximum number of prompt and output tokens; None: the model's context.
        max_num_seqs: maximum number of requests in the running batch.
        max_num_batched_tokens: maximum prompt tokens per engine step; None: by the device.
        page_size: tokens per KV block.
        pool_gib: device memory for the KV pool, GiB. Excludes ``num_pages``.
        num_pages: size of the KV pool in blocks. Excludes ``pool_gib``.
        dtype: of weights and KV cache.
        attention: attention kernel; auto: the best one that supports the model on this device.
        tensor_parallel: number of devices, over all processes, that shard model and pool.
        coordinator: HOST:PORT of process 0 if several processes share the model; auto: ask the
            cluster; None: a single process.
        num_processes, process_id: number of processes, index of this one; None: ask the cluster.
        join_timeout_s: seconds that processes wait for each other at startup.
        random_weights: initialize weights at random instead of reading them.
        seed: of random weights, and of requests without a seed.
        deterministic: make tokens independent of batch and cache state, at some cost in speed.
        cache: the policy of the KV cache.
        max_waiting: maximum number of queued requests; further requests get HTTP 429.
        max_body_mib: maximum size of a request body, MiB; larger bodies get HTTP 413.
        drain_timeout_s: seconds that running requests have to finish after Ctrl-C or SIGTERM.
        trace: file to write a trace of the engine to; None: no trace.
        cache_dir: folder of models and compiled programs.
        log_level: name of a ``logging`` level, in lower case.
    """

    model: str = "smollm2-135m"
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    # repr=False keeps the keys out of log lines that print the config.
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    page_size: int = 16
    pool_gib: float | None = None
    num_pages: int | None = None
    dtype: str = "auto"
    attention: str = "auto"
    tensor_parallel: int = 1
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout_s: float = 300.0
    random_weights: bool = False
    seed: int | None = None
    deterministic: bool = False
    cache: CacheConfig = CacheConfig()
    max_waiting: int = 1024
    max_body_mib: float = 32.0
    drain_timeout_s: float = 30.0
    trace: Path | None = None
    cache_dir: Path = Path("~/.cache/kvflow-jax")
    log_level: str = "info"

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mib * 2**20)
