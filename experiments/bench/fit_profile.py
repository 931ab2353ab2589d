"""Fits a profile to this machine: times steps of a real model, prompts and decoding.

    python -m experiments.bench.fit_profile --json experiments/results/profile_this_machine.json

Steps are timed through the runner that serves, at several lengths and contexts; then the rates of
the roofline model are those of least relative error, each step being counted as bound by what
binds it at those rates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.measure import arguments, report
from kvflow_jax.api.launch import use_compilation_cache
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.config import PREFILL_TILE
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.runner import ModelRunner
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.profile import ModelShape, Profile, Work, work_of

PAGE, CONTEXT_LEN, MOST_DECODE, MOST_PREFILL = 16, 1088, 4, 256
# (tokens, context) of prompts' chunks, and (rows, context) of decode steps.
PREFILLS = ((32, 0), (32, 1024), (64, 256), (128, 0), (128, 896), (256, 0), (256, 512), (256, 768))
DECODES = ((1, 32), (1, 1056), (2, 512), (4, 32), (4, 1056))


@dataclass(frozen=True)
class Sample:
    """A kind of step that was timed.

    Attributes:
        seconds: median of the step.
        host_s: CPU seconds of the thread that dispatched it, median.
    """

    work: Work
    seconds: float
    host_s: float


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    use_compilation_cache(default_cache_dir())
    loaded = load_model(options.model, progress=False)
    timer = StepTimer(loaded)
    samples = timer.samples(timer.times())
    shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
    profile = fit(shape, samples)
    reach = {"worst_error": "<= 0.2"}
    report(figures(shape, profile, samples), reach, options.json)


def figures(shape: ModelShape, profile: Profile, samples: list[Sample]) -> dict[str, Any]:
    errors = [predicted_s(shape, profile, one.work) / one.seconds - 1 for one in samples]
    return {
        "profile": profile.to_dict(),
        "model": shape.name,
        "median_error": float(np.median(np.abs(errors))),
        "worst_error": float(np.max(np.abs(errors))),
        "steps": [
            {
                "tokens": one.work.num_tokens,
                "kv_read": one.work.num_read_tokens,
                "measured_ms": round(1e3 * one.seconds, 2),
                "predicted_ms": round(1e3 * predicted_s(shape, profile, one.work), 2),
            }
            for one in samples
        ],
    }


def predicted_s(shape: ModelShape, profile: Profile, work: Work) -> float:
    return max(profile.compute_s(shape, work), profile.memory_s(shape, work)) + profile.launch_s


class StepTimer:
    """Times the steps of ``PREFILLS`` and ``DECODES`` on a runner of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        config, pages = loaded.config, -(-CONTEXT_LEN // PAGE)
        pool = PoolSpec(
            config.num_layers,
            MOST_DECODE * pages + 1,
            PAGE,
            config.num_kv_heads,
            config.head_dim,
            loaded.model.dtype,
        )
        shapes = BatchShapes.plan(
            max_num_seqs=MOST_DECODE,
            max_prefill_tokens=MOST_PREFILL,
            tile=PREFILL_TILE,
            page_size=PAGE,
            pages_per_seq=pages,
        )
        self._runner = ModelRunner(loaded.model, loaded.params, pool, shapes)
        self._batches = [_prefill(shapes, *one) for one in PREFILLS]
        self._batches += [_decode(shapes, *one) for one in DECODES]
        for batch in self._batches:
            self._runner.submit(batch).result()  # compiled now

    def times(self, repeats: int = 5) -> np.ndarray:
        """f64[repeats, steps, 2]: seconds of each step, and CPU seconds of its dispatch.

        In rounds over all steps, so that a slow minute of a shared machine touches all alike.
        """
        times = np.empty((repeats, len(self._batches), 2))
        for number in range(repeats):
            for i, batch in enumerate(self._batches):
                begun, cpu = time.perf_counter(), time.thread_time()
                step = self._runner.submit(batch)
                times[number, i, 1] = time.thread_time() - cpu
                step.result()
                times[number, i, 0] = time.perf_counter() - begun
        return times

    def samples(self, times: np.ndarray) -> list[Sample]:
        """The medians of ``times``, f64[any, steps, 2]."""
        medians = np.median(times, axis=0)
        return [
            Sample(work_of(batch), float(taken), float(host))
            for batch, (taken, host) in zip(self._batches, medians, strict=True)
        ]


def fit(shape: ModelShape, samples: list[Sample]) -> Profile:
    """The profile of least squared relative error over ``samples``.

    Its link is that on which reloading a token costs as much of computing it as in the paper's
    setting: Llama-3.1-8B on an A10G over 2 GB/s.
    """
    work = [one.work for one in samples]
    seconds = np.array([one.seconds for one in samples])
    flops = [w.num_tokens * shape.flops_per_token + w.num_rows * shape.flops_per_row for w in work]
    pairs = [w.num_pairs * shape.flops_per_pair for w in work]
    read = [shape.weight_bytes + w.num_read_tokens * shape.kv_bytes_per_token for w in work]
    compute = np.stack([flops, pairs, np.zeros(len(work)), np.ones(len(work))], axis=1)
    memory = np.stack([np.zeros(len(work)), np.zeros(len(work)), read, np.ones(len(work))], axis=1)
    decodes = np.array([w.num_tokens == w.num_rows for w in work])  # the first guess
    while True:
        rows = np.where(decodes[:, None], memory, compute) / seconds[:, None]
        costs = _non_negative(rows, np.ones(len(work)))
        binds = memory @ costs > compute @ costs
        if (binds == decodes).all() or not binds.any():
            break
        decodes = binds
    per_flop, per_pair, per_byte, launch_s = costs.tolist()
    flops_per_s = 1 / per_flop
    ratio = A10G.link_ratio(LLAMA_3_1_8B)
    link = shape.kv_bytes_per_token * flops_per_s / (ratio * shape.flops_per_token)
    return Profile(
        name="this-machine",
        flops_per_s=flops_per_s,
        attention_flops_per_s=1 / per_pair if per_pair else flops_per_s,
        mem_bytes_per_s=1 / per_byte,
        launch_s=launch_s,
        host_s=float(np.median([one.host_s for one in samples])),
        link_bytes_per_s=link,
        link_latency_s=0.0,
    )


def _non_negative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares with costs of at least 0: those that would be negative are left out."""
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    used = np.ones(rows.shape[1], bool)
    while True:
        costs = np.zeros(rows.shape[1])
        costs[used] = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=None)[0]
        if (costs >= 0).all():
            return costs / scale
        used &= costs > 0


def _prefill(shapes: BatchShapes, num_tokens: int, context: int) -> Batch:
    shape = next(s for s in shapes.shapes if s.fits(0, [num_tokens]))
    batch = Batch.empty(shape, shapes.pages_per_seq, shapes.num_seq_slots)
    batch.page_table[:] = 1 + np.arange(shapes.pages_per_seq)
    starts = np.arange(0, num_tokens, shape.tile)
    rows = slice(shape.num_decode, shape.num_decode + len(starts))
    batch.query_start[rows] = context + starts
    batch.query_len[rows] = np.minimum(shape.tile, num_tokens - starts)
    return batch


def _decode(shapes: BatchShapes, num_rows: int, context: int) -> Batch:
    shape = next(s for s in shapes.shapes if s.fits(num_rows, []))
    batch = Batch.empty(shape, shapes.pages_per_seq, shapes.num_seq_slots)
    own = np.arange(num_rows)[:, None] * shapes.pages_per_seq
    batch.page_table[:num_rows] = 1 + own + np.arange(shapes.pages_per_seq)
    batch.query_start[:num_rows] = context
    batch.query_len[:num_rows] = 1
    return batch


if __name__ == "__main__":
    main()
