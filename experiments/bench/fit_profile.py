"""Fit a hardware profile to this machine from timed steps of a real model in float32.

    python -m experiments.bench.fit_profile --json experiments/results/profile_this_machine.json

The engine's own runner executes the steps, at several prompt lengths, batch sizes and contexts. The
rates of the roofline model are then those of least squared relative error, where each step counts
as bound by compute or by memory, whichever takes longer at those rates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.measure import arguments, report
from kvflow_jax.api.launch import use_compilation_cache
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.sizes import PREFILL_TILE
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.load import LoadedModel, load_model
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.runner import ModelRunner
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.profile import ModelShape, Profile, Work, work_of

PAGE, MOST_DECODE, MOST_PREFILL = 16, 4, 256
Step = tuple[int, int]
# (tokens, context) of prompt chunks, and (rows, context) of decode steps.
PREFILLS = ((32, 0), (32, 1024), (64, 256), (128, 0), (128, 896), (256, 0), (256, 512), (256, 768))
DECODES = ((1, 32), (1, 1056), (2, 512), (4, 32), (4, 1056))


@dataclass(frozen=True)
class Sample:
    """One kind of step, timed.

    Attributes:
        work: work of the step.
        seconds: median wall time of the step.
        host_s: median CPU time of the thread that dispatched the step, seconds.
    """

    work: Work
    seconds: float
    host_s: float


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="name, folder or .gguf file")
    options = parser.parse_args()
    use_compilation_cache(default_cache_dir())
    loaded = load_model(options.model, dtype="float32", progress=False)
    timer = StepTimer(loaded)
    samples = timer.samples(timer.times())
    shape = ModelShape.of(loaded.name, loaded.config, itemsize=4)
    profile = fit(shape, samples)
    reach = {"worst_error": "<= 0.2"}
    report(figures(shape, profile, samples), reach, options.json)
    return 0


def figures(shape: ModelShape, profile: Profile, samples: list[Sample]) -> dict[str, Any]:
    """Return the profile, and the measured and predicted time of each step."""
    errors = [predicted_s(shape, profile, step.work) / step.seconds - 1 for step in samples]
    return {
        "profile": profile.to_dict(),
        "model": shape.name,
        "median_error": float(np.median(np.abs(errors))),
        "worst_error": float(np.max(np.abs(errors))),
        "steps": [
            {
                "tokens": step.work.num_tokens,
                "kv_read": step.work.num_read_tokens,
                "measured_ms": round(1e3 * step.seconds, 2),
                "predicted_ms": round(1e3 * predicted_s(shape, profile, step.work), 2),
            }
            for step in samples
        ],
    }


def predicted_s(shape: ModelShape, profile: Profile, work: Work) -> float:
    """Return the time of a step under the profile, seconds."""
    return max(profile.compute_s(shape, work), profile.memory_s(shape, work)) + profile.launch_s


class StepTimer:
    """Times steps of a model on its own runner.

    Args:
        prefills, decodes: the steps: tokens and context of a prompt chunk, rows and context of a
            decode step.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prefills: Sequence[Step] = PREFILLS,
        decodes: Sequence[Step] = DECODES,
    ) -> None:
        longest = max(
            *(num_tokens + context for num_tokens, context in prefills),
            *(context + 1 for _, context in decodes),
        )
        config, pages = loaded.config, -(-longest // PAGE)
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
        self._batches = [_prefill(shapes, *one) for one in prefills]
        self._batches += [_decode(shapes, *one) for one in decodes]
        for batch in self._batches:
            self._runner.submit(batch).result()  # compiles

    def times(self, repeats: int = 5) -> np.ndarray:
        """Return f64[repeats, steps, 2]: wall time of each step and CPU time of its dispatch, s.

        Each round times every step, so that a slow minute of a shared machine affects all alike.
        """
        times = np.empty((repeats, len(self._batches), 2))
        for number in range(repeats):
            for i, batch in enumerate(self._batches):
                start, cpu = time.perf_counter(), time.thread_time()
                step = self._runner.submit(batch)
                times[number, i, 1] = time.thread_time() - cpu
                step.result()
                times[number, i, 0] = time.perf_counter() - start
        return times

    def samples(self, times: np.ndarray) -> list[Sample]:
        """Return the medians of ``times``, f64[any, steps, 2]."""
        medians = np.median(times, axis=0)
        return [
            Sample(work_of(batch), float(wall_s), float(host_s))
            for batch, (wall_s, host_s) in zip(self._batches, medians, strict=True)
        ]


def fit(shape: ModelShape, samples: list[Sample]) -> Profile:
    """Return the profile of least squared relative error over ``samples``.

    Its link gives the ratio of the paper's setting, Llama-3.1-8B on an A10G over 2 GB/s, between
    the time to load a token and the time to compute it. A rate whose cost is not measurable, as in
    a tiny model whose steps are all launch, is the least that the samples allow.
    """
    work = [step.work for step in samples]
    seconds = np.array([step.seconds for step in samples])
    flops = [w.num_tokens * shape.flops_per_token + w.num_rows * shape.flops_per_row for w in work]
    pairs = [w.num_pairs * shape.flops_per_pair for w in work]
    read = [shape.weight_bytes + w.num_read_tokens * shape.kv_bytes_per_token for w in work]
    compute = np.stack([flops, pairs, np.zeros(len(work)), np.ones(len(work))], axis=1)
    memory = np.stack([np.zeros(len(work)), np.zeros(len(work)), read, np.ones(len(work))], axis=1)
    decodes = np.array([w.num_tokens == w.num_rows for w in work])  # the first guess
    tried: dict[bytes, tuple[float, np.ndarray]] = {}  # error and costs, by guess
    while True:
        rows = np.where(decodes[:, None], memory, compute) / seconds[:, None]
        costs = _non_negative(rows, np.ones(len(work)))
        in_compute, in_memory = compute @ costs, memory @ costs
        binds = in_memory > in_compute
        if (binds == decodes).all() or not binds.any():
            break
        errors = np.maximum(in_compute, in_memory) / seconds - 1
        tried[decodes.tobytes()] = float(errors @ errors), costs
        if binds.tobytes() in tried:
            # The guesses go round in a circle, as where two costs are alike: the best one counts.
            costs = min(tried.values(), key=lambda one: one[0])[1]
            break
        decodes = binds
    per_flop, per_pair, per_byte, launch_s = costs.tolist()
    flops_per_s = _rate(per_flop, np.array(flops) / seconds)
    ratio = A10G.link_ratio(LLAMA_3_1_8B)
    link = shape.kv_bytes_per_token * flops_per_s / (ratio * shape.flops_per_token)
    return Profile(
        name="this-machine",
        flops_per_s=flops_per_s,
        attention_flops_per_s=1 / per_pair if per_pair else flops_per_s,
        mem_bytes_per_s=_rate(per_byte, np.array(read) / seconds),
        launch_s=launch_s,
        host_s=float(np.median([step.host_s for step in samples])),
        link_bytes_per_s=link,
        link_latency_s=0.0,
    )


def _rate(cost: float, achieved: np.ndarray) -> float:
    """Return the rate of a cost, or the highest rate that was achieved where the cost is 0."""
    return float(1 / cost if cost else achieved.max())


def _non_negative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Solve least squares with costs of at least 0: negative ones are set to 0 and left out."""
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    used = np.ones(rows.shape[1], bool)
    while True:
        costs = np.zeros(rows.shape[1])
        costs[used] = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=None)[0]
        if (costs >= 0).all():
            scaled: np.ndarray = costs / scale
            return scaled
        used &= costs > 0


def _prefill(shapes: BatchShapes, num_tokens: int, context: int) -> Batch[np.ndarray]:
    shape = next(s for s in shapes.shapes if s.fits(0, [num_tokens]))
    batch = Batch.empty(shape, shapes.pages_per_seq, shapes.num_seq_slots)
    batch.page_table[:] = 1 + np.arange(shapes.pages_per_seq)
    starts = np.arange(0, num_tokens, shape.tile)
    rows = slice(shape.num_decode, shape.num_decode + len(starts))
    batch.query_start[rows] = context + starts
    batch.query_len[rows] = np.minimum(shape.tile, num_tokens - starts)
    return batch


def _decode(shapes: BatchShapes, num_rows: int, context: int) -> Batch[np.ndarray]:
    shape = next(s for s in shapes.shapes if s.fits(num_rows, []))
    batch = Batch.empty(shape, shapes.pages_per_seq, shapes.num_seq_slots)
    own = np.arange(num_rows)[:, None] * shapes.pages_per_seq
    batch.page_table[:num_rows] = 1 + own + np.arange(shapes.pages_per_seq)
    batch.query_start[:num_rows] = context
    batch.query_len[:num_rows] = 1
    return batch


if __name__ == "__main__":
    raise SystemExit(main())
