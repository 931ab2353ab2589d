"""Everything the command line decides, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvflow_jax.engine.cache_config import CacheConfig


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of one server process; where None, the engine decides from the model and memory.

    Args:
        model: name of a known model, or a directory; also accepted in requests as an alias.
        served_model_name: the name clients use; None: what the loaded model calls itself.
        host, port: where to listen; port 0 lets the system choose.
        api_keys: Bearer keys; empty: no key is asked for. With several, tenants share no cache.
        max_model_len: tokens of prompt and answer together; None: the model's context.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: prompt tokens of one engine step; None: by the device.
        page_size: tokens per cache block.
        pool_gib: device memory for the KV pool, GiB. Excludes ``num_pages``.
        num_pages: size of the KV pool in blocks. Excludes ``pool_gib``.
        dtype: of weights and KV.
        attention: the kernel for it; auto: the best that serves the model on this device.
        tensor_parallel: devices that share model and pool, of all processes.
        coordinator: HOST:PORT of process 0 where several processes share the model; auto: what the
            cluster says; None: this process is alone.
        num_processes, process_id: how many they are, and which this is; None: what the cluster
            says.
        join_timeout_s: seconds that processes wait for each other at the start.
        random_weights: build the architecture without reading weights.
        seed: of random weights, and of requests that bring none of their own.
        deterministic: tokens that do not depend on the batch or the cache, at some cost in speed.
        cache: what is kept where, and what goes first.
        max_waiting: requests that may wait before new ones get 429.
        max_body_mib: largest request body, MiB; more gets 413.
        drain_timeout_s: seconds that running requests get after Ctrl-C or SIGTERM.
        trace: file for a trace of the engine; None: no trace.
        cache_dir: where models and compiled programs are kept.
        log_level: a name that ``logging`` knows, lower case.
    """

    model: str = "smollm2-135m"
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    # repr=False: keys must not reach a log line that prints the config.
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
