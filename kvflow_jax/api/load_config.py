"""The settings by which a model is loaded. Imports no JAX, so that ``--help`` needs none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import COUNT, FILE, FOLDER, NAME, POSITIVE, SWITCH, one_of

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["auto", "none", "int8", "int4"]
Attention = Literal["auto", "reference", "blocks", "tpu-ragged", "gpu-mosaic", "gpu-paged"]


@dataclass(frozen=True)
class LoadConfig(Config):
    """Which model is loaded, and how.

    Raises:
        ConfigError: a value is out of range.
    """

    title: ClassVar[str] = "model"

    model: str = flag(
        "smollm2-135m", "smollm2-135m, a Hugging Face folder, a .gguf file or a Hub name", NAME
    )
    dtype: Dtype = flag(
        "auto",
        "dtype of weights and KV cache; auto: bfloat16 on TPU and on CPUs that multiply it fast "
        "(avx512_bf16, AMX), float32 on other CPUs; on GPU float16 if the checkpoint has it or the "
        "GPU has no bfloat16, else bfloat16",
        one_of(*get_args(Dtype)),
    )
    quantize: Quantize = flag(
        "auto",
        "keep matrices in 8 or 4 bits (int4: embeddings in 8), with a scale for 32 values of a "
        "column, as GGUF's Q8_0 and Q4_1 do. Without the CPU kernels only int8, with "
        "per-channel scales; mixtures of experts are not supported. auto: as a quantised .gguf "
        "file has them, where the CPU kernels compute it, else none",
        one_of(*get_args(Quantize)),
    )
    attention: Attention = flag(
        "auto",
        "attention kernel; auto: the best one that supports the model on this device",
        one_of(*get_args(Attention)),
    )
    tensor_parallel: int = flag(
        1, "number of devices, over all processes, that shard the model and the KV pool", COUNT
    )
    random_weights: bool = flag(
        False,
        "initialize weights at random from --seed; --model may then also be qwen3-0.6b, "
        "qwen3-30b-a3b, llama-3.2-1b or llama-3.1-8b",
        SWITCH,
    )
    chat_template: Path | None = flag(
        None,
        "file of a Jinja template that renders chats, for models that have none, such as base "
        "models and some .gguf files",
        FILE,
        if_unset="the model's own",
        is_per_process=True,
    )
    generation_config: str = flag(
        "auto",
        "sampling parameters of requests that leave them out. auto: the model's "
        "generation_config.json; kvflow: the neutral ones of docs/sampling.md; or a folder with "
        "a generation_config.json",
        NAME,
        unit="auto|kvflow|FOLDER",
        is_per_process=True,
    )
    cache_dir: Path | None = flag(
        None,
        "folder of models and compiled programs",
        FOLDER,
        env="KVFLOW_CACHE_DIR",
        if_unset="~/.cache/kvflow-jax",
        is_per_process=True,
    )
    cache_dir_gib: float = flag(
        32.0,
        "maximum size of --cache-dir, GiB; after a start, what was not used for longest is removed",
        POSITIVE,
        unit="GIB",
        is_per_process=True,
    )
