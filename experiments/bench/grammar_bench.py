"""Benchmark structured output: the cost of a decode step, and answers to schemas of real tools.

    python -m experiments.grammar_bench --json FILE
    python -m experiments.grammar_bench --tools FOLDER   # BFCL's files of tools
    python -m experiments.grammar_bench --quick          # tiny random model

Steps with no, one and all rows with a grammar are measured in turns, as the machine's load drifts.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from experiments.bench.tool_schemas import sample_tools
from experiments.make_folder import temporary_folder
from experiments.measure import QUICK_ENGINE, arguments, report
from kvflow_jax import LLM, SamplingParams, StructuredOutputsParams
from kvflow_jax.api.completion import Completion
from kvflow_jax.api.options import LLMOptions
from kvflow_jax.errors import StepFailedError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.speculation.config import NO_SPECULATION

NUM_ROWS = 8
REACH = {
    "one_grammar_row_step_ratio": "<= 1.10",
    "all_grammar_rows_step_ratio": "<= 1.25",
    "invalid_answers": "0",
    "invalid_prefixes": "0",
}
# Never complete within the tokens of a measurement.
ENDLESS = StructuredOutputsParams(
    json={"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1000}
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument("--quick", action="store_true", help="a check of the command: tiny model")
    parser.add_argument("--tools", type=Path, metavar="FOLDER", help="BFCL's files of tools")
    parser.add_argument("--num-tools", type=int, default=100, help="tools to answer (100)")
    options = parser.parse_args()
    engine = LLMOptions(pool_gib=0.3, max_num_seqs=NUM_ROWS, max_model_len=2048)
    if options.quick:
        engine = QUICK_ENGINE | {"max_num_seqs": NUM_ROWS}
    engine["speculative_config"] = NO_SPECULATION  # a measurement of steps
    num_rounds, num_steps, max_tokens = (1, 10, 32) if options.quick else (7, 60, 512)
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        model = str(folder or options.model or "smollm2-135m")
        with LLM(model, progress=False, **engine) as llm:
            figures = {"dtype": llm.model.dtype, **step_figures(llm, num_rounds, num_steps)}
            if options.tools is not None:
                figures |= tool_figures(llm, options.tools, options.num_tools, max_tokens)
    report(figures, REACH, options.json)
    return 0


def step_figures(llm: LLM, num_rounds: int, num_steps: int) -> dict[str, Any]:
    """Measure decode steps of eight rows, of which none, one and all have a grammar."""
    counts = {"no_grammar_row": 0, "one_grammar_row": 1, "all_grammar_rows": NUM_ROWS}
    times: dict[str, list[float]] = {name: [] for name in counts}
    rates: dict[str, list[float]] = {name: [] for name in counts}
    for _ in range(num_rounds):
        for name, num_grammars in counts.items():
            step_s, tokens_per_s = measure_steps(llm, num_grammars, num_steps)
            times[name].append(step_s)
            rates[name].append(tokens_per_s)
    figures: dict[str, Any] = {}
    for name in counts:
        figures[f"{name}_step_ms"] = float(np.median(times[name])) * 1e3
        figures[f"{name}_tokens_per_s"] = float(np.median(rates[name]))
    for name in list(counts)[1:]:
        ratios = np.array(times[name]) / np.array(times["no_grammar_row"])
        figures[f"{name}_step_ratio"] = float(np.median(ratios))
    return figures


def measure_steps(llm: LLM, num_grammars: int, num_steps: int) -> tuple[float, float]:
    """Return the seconds of a step, and the tokens per second of all rows."""
    rng = np.random.default_rng(0)
    # A row with a grammar may need two steps a token.
    max_tokens = 3 * num_steps
    streams = []
    for row in range(NUM_ROWS):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            structured_outputs=ENDLESS if row < num_grammars else None,
        )
        prompt = rng.integers(0, llm.config.vocab_size, 32).tolist()
        streams.append(llm.stream(prompt, params))
    try:
        for stream in streams:
            next(stream)
        plain = streams[-1]
        for _ in range(4):
            next(plain)
        before, start_s = llm.stats, time.perf_counter()
        while llm.stats.num_steps < before.num_steps + num_steps:
            next(plain)
        after, seconds = llm.stats, time.perf_counter() - start_s
    finally:
        for stream in streams:
            stream.close()
    return (
        seconds / (after.num_steps - before.num_steps),
        (after.generation_tokens - before.generation_tokens) / seconds,
    )


def tool_figures(llm: LLM, folder: Path, num_tools: int, max_tokens: int) -> dict[str, Any]:
    """Answer with arguments for real tools, streamed and not; validate each answer."""
    tools = sample_tools(folder, num_tools)
    conversations = [
        [{"role": "user", "content": f"Give the arguments of {name} as JSON. {description}"}]
        for name, description, _ in tools
    ]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            structured_outputs=StructuredOutputsParams(json=schema),
        )
        for _, _, schema in tools
    ]
    counts = {"ended": 0, "streamed_ended": 0, "invalid_answers": 0, "invalid_prefixes": 0}
    answers = llm.chat(conversations, params, progress=False)
    for start in range(0, len(tools), NUM_ROWS):
        rows = slice(start, start + NUM_ROWS)
        streams = [
            llm.stream_chat(messages, own)
            for messages, own in zip(conversations[rows], params[rows], strict=True)
        ]
        streamed = [Completion.of(list(stream)) for stream in streams]
        for i, (whole, pieces) in enumerate(zip(answers[rows], streamed, strict=True), start):
            schema = tools[i][2]
            counts["ended"] += whole.finish_reason is FinishReason.STOP
            counts["streamed_ended"] += pieces.finish_reason is FinishReason.STOP
            for answer in (whole, pieces):
                if answer.finish_reason is FinishReason.STOP:
                    counts["invalid_answers"] += not is_valid(answer.text, schema)
                else:
                    counts["invalid_prefixes"] += not is_prefix(llm, answer, params[i])
    return {"tools": len(tools), **counts}


def is_valid(text: str, schema: Any) -> bool:
    """Return whether a text is JSON that conforms to a schema."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def is_prefix(llm: LLM, answer: Completion, params: SamplingParams) -> bool:
    """Return whether a grammar accepts the tokens of a text that was cut."""
    assert params.structured_outputs is not None
    matcher = llm.engine.compile_grammar(params.structured_outputs).clone()
    try:
        for token in answer.token_ids:
            matcher.accept(token)
    except StepFailedError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
