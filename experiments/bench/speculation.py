"""Benchmark speculative decoding: tokens a step on recorded calls, time of agents with and without.

    python -m experiments.speculation --traces FOLDER --json FILE
    python -m experiments.speculation --quick     # tiny random model

``--traces`` replays recorded calls through the engine's own drafter: each folder in FOLDER holds
the calls of an application, as JSON lines ``{timestamp, input, output}``, replayed in the order of
their times. The answers are known, so that the model does not run; each verification counts as a
step, the prefill that gives the first token does not. The model's tokenizer splits the text.

The live loads run on two engines that differ in speculative decoding only, round by round in turn.
``agents``: an editor, a planner and a reviewer, each of which repeats most of what it has read or
said. ``nothing``: random tokens sampled at temperature 2, of which no draft holds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.make_folder import temporary_folder
from experiments.measure import arguments, report
from kvflow_jax.api.completion import Completion
from kvflow_jax.api.llm import LLM
from kvflow_jax.api.options import LLMOptions
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.speculation.acceptance import AgentRates
from kvflow_jax.speculation.config import NO_SPECULATION, SpeculativeConfig
from kvflow_jax.speculation.draft_tracker import DraftTracker
from kvflow_jax.speculation.drafter import Drafter
from kvflow_jax.speculation.suffix_index import SuffixIndex, owner_of

TARGETS = {
    "tokens_per_step.magagent": ">= 3.0",
    "tokens_per_step.miniswe": ">= 2.3",
    "tokens_per_step.taubench": ">= 1.5",
    "agents_speedup": ">= 1.3",
    "nothing_slowdown": "<= 1.02",
}
MIN_REACHED = 0.1  # a drafted token of a replay is verified if it is accepted this often
NUM_ROWS = 16  # decode rows of both engines

_FILE = "\n".join(
    f"def handle_{name}(request, store):\n"
    f'    """Handle a {name} request."""\n'
    f"    item = store.get(request.{name}_id)\n"
    f"    if item is None:\n"
    f'        raise KeyError("no {name} of this id")\n'
    f"    return item.{name}(request.user)\n"
    for name in ("order", "refund", "invoice")
)
_PLAN = json.dumps(
    {
        "steps": [
            {"agent": agent, "task": f"{task} the change", "status": "open"}
            for agent, task in (("editor", "write"), ("tester", "test"), ("reviewer", "review"))
        ]
    },
    indent=1,
)
_AGENTS = {
    "editor": f"Repeat this file and rename store to database.\n```python\n{_FILE}```\n",
    "planner": f"Repeat this plan and mark its first step as done.\n```json\n{_PLAN}\n```\n",
    "reviewer": f"Repeat each function of this file, then say what it does.\n{_FILE}",
}


@dataclass(frozen=True)
class Call:
    """A recorded call: its prompt and answer, i32[n]."""

    prompt: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Replayed:
    """What the drafter reached on recorded calls.

    Attributes:
        acceptance: part of the verified tokens that were accepted.
        draft_us: mean time to follow and make drafts, microseconds a step.
    """

    num_calls: int
    num_tokens: int
    tokens_per_step: float
    drafted_per_step: float
    acceptance: float
    draft_us: float


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="replay recorded calls")
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each live load")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--no-live", action="store_true", help="replay only")
    parser.add_argument("--quick", action="store_true", help="a check of the command: tiny model")
    options = parser.parse_args()
    if options.traces is not None and not options.traces.is_dir():
        parser.error(f"--traces: there is no folder {options.traces}")
    num_rounds, max_tokens = (1, 8) if options.quick else (options.rounds, options.max_tokens)
    config = SpeculativeConfig(num_speculative_tokens=NUM_ROWS - 1)
    figures: dict[str, Any] = {"speculative_config": asdict(config)}
    engine = LLMOptions(pool_gib=0.3, max_num_seqs=NUM_ROWS, max_model_len=2048)
    # Two batch shapes, which compile in seconds.
    engine["deterministic"] = options.quick
    without, with_drafts = engine.copy(), engine.copy()
    without["speculative_config"], with_drafts["speculative_config"] = NO_SPECULATION, config
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        model = str(folder or options.model or "smollm2-135m")
        with LLM(model, progress=False, **without) as plain:
            assert plain.tokenizer is not None
            figures["dtype"] = plain.model.dtype
            if options.traces is not None:
                figures |= _replay_folder(options.traces, plain.tokenizer, config)
            if not options.no_live:
                with LLM(model, progress=False, **with_drafts) as drafting:
                    figures |= _live(plain, drafting, num_rounds, max_tokens)
    report(figures, TARGETS, options.json)
    return 0


def replay(calls: Sequence[Call], config: SpeculativeConfig) -> Replayed:
    """Replay calls of one application in order, each after the answers before it."""
    index = SuffixIndex(config.num_corpus_tokens) if config.num_corpus_tokens else None
    max_tokens = config.num_speculative_tokens
    drafter = Drafter(index, max_tokens, config.suffix_decoding_max_tree_depth)
    owner = owner_of("replay")
    rates = AgentRates().of(owner)
    num_steps = num_tokens = num_drafted = num_accepted = 0
    spent_s = 0.0
    for call in calls:
        sequence = np.concatenate([call.prompt, call.answer])
        tracker = DraftTracker(drafter, owner, rates, max_tokens=max_tokens)
        known, num_all = len(call.prompt) + 1, len(sequence)
        while known < num_all:
            start = time.perf_counter()
            tracker.update(sequence[:known])
            spent_s += time.perf_counter() - start
            likely = sum(reached >= MIN_REACHED for reached in tracker.draft.reached())
            draft = tracker.draft.tokens[: min(likely, num_all - known - 1)]
            held = np.array(draft, np.int32) == sequence[known : known + len(draft)]
            accepted = int(held.argmin()) if not held.all() else len(draft)
            num_steps += 1
            num_drafted += len(draft)
            num_accepted += accepted
            num_tokens += accepted + 1
            known += accepted + 1
        drafter.insert(owner, sequence, len(call.prompt))
    steps = max(1, num_steps)
    return Replayed(
        len(calls),
        num_tokens,
        num_tokens / steps,
        num_drafted / steps,
        num_accepted / max(1, num_drafted),
        1e6 * spent_s / steps,
    )


def read_calls(folder: Path, tokenizer: Tokenizer) -> list[Call]:
    """Return the calls of a folder's .jsonl files that have an answer, oldest first."""
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]
    records = [record for line in lines if (record := json.loads(line))["output"]]
    records.sort(key=lambda record: record["timestamp"])
    eos = tokenizer.eos_token_ids[:1]
    return [
        Call(
            np.array(tokenizer.encode(record["input"]), np.int32),
            np.array(
                [*tokenizer.encode(record["output"], add_special_tokens=False), *eos], np.int32
            ),
        )
        for record in records
    ]


def _replay_folder(
    folder: Path, tokenizer: Tokenizer, config: SpeculativeConfig
) -> dict[str, object]:
    figures: dict[str, object] = {}
    for application in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = replay(read_calls(application, tokenizer), config)
        figures[f"tokens_per_step.{application.name}"] = found.tokens_per_step
        figures[f"replay.{application.name}"] = asdict(found)
    return figures


def _live(plain: LLM, drafting: LLM, num_rounds: int, max_tokens: int) -> dict[str, object]:
    """Time both loads on both engines, which take turns."""
    figures: dict[str, object] = {}
    for name, run in (("agents", _run_agents), ("nothing", _run_random)):
        times: dict[str, list[float]] = {"plain": [], "drafting": []}
        num_equal = num_answers = 0
        # The first round is not counted: it fills the caches of the machine and of the engines.
        for i in range(num_rounds + 1):
            answers = []
            order = [("plain", plain), ("drafting", drafting)]
            for kind, llm in order if i % 2 else reversed(order):
                start = time.perf_counter()
                answers.append(run(llm, i, max_tokens))
                if i:
                    times[kind].append(time.perf_counter() - start)
            num_answers += len(answers[0])
            num_equal += sum(a == b for a, b in zip(*answers, strict=True))
        pairs = zip(times["plain"], times["drafting"], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        figures[f"{name}_speedup" if name == "agents" else f"{name}_slowdown"] = (
            ratio if name == "agents" else 1 / ratio
        )
        figures |= {f"{name}_{kind}_s": statistics.median(times[kind]) for kind in times}
        figures[f"{name}_equal_answers"] = num_equal / num_answers
        figures[f"{name}_drafts"] = asdict(drafting.stats.drafts)
    return figures


def _run_agents(llm: LLM, round_number: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Let each agent answer once, one after the other; return the answers' tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return [
        _ask(llm, f"You are the {name} of round {round_number}.", prompt, params).token_ids
        for name, prompt in _AGENTS.items()
    ]


def _ask(llm: LLM, system: str, prompt: str, params: SamplingParams) -> Completion:
    assert llm.tokenizer is not None
    if llm.tokenizer.chat_template is None:
        return llm.generate(f"{system}\n{prompt}", params)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return llm.chat(messages, params)


def _run_random(llm: LLM, round_number: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Continue random prompts with random tokens; return the answers' tokens."""
    rng = np.random.default_rng(round_number)
    answers = []
    for seed in range(3):
        params = SamplingParams(
            temperature=2.0, max_tokens=max_tokens, ignore_eos=True, seed=seed + 10 * round_number
        )
        prompt = rng.integers(3, llm.config.vocab_size, 200).tolist()
        answers.append(llm.generate(prompt, params).token_ids)
    return answers
