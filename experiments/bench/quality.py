"""Measure what each mode costs in quality: perplexity, greedy agreement with float32, memory.

    python -m experiments.quality --json FILE
    python -m experiments.quality --quick     # tiny random model: under a minute

The text is the documentation and the licence of this repository, in windows of equal length. Of
every window the model's own log probabilities give the perplexity, and how often the most probable
token is that of float32. Greedy agreement counts the tokens up to the first one that differs: one
near tie that rounding decides changes all that follow.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from experiments.child import ROOT, ChildError, run_child
from experiments.make_folder import temporary_folder
from experiments.measure import QUICK_ENGINE, arguments, write_json
from experiments.modes import MODES
from kvflow_jax.api.options import LLMOptions
from kvflow_jax.speculation.config import NO_SPECULATION

TEXTS = ("docs/**/*.md", "LICENSE")
LIMIT_S = 1800.0  # of a mode
REACH = {"perplexity_ratio": "int8 <= 1.01", "weights_ratio": "int8 <= 0.40"}
COLUMNS = (
    *("perplexity", "perplexity_ratio", "top1_agreement", "greedy_agreement"),
    *("greedy_equal", "weights_mib", "weights_ratio"),
)


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        window_len: tokens of a window, each of which is a prompt of its own.
        max_windows: windows of the text, evenly spread over it.
        num_prompts: prompts that are continued greedily, the beginnings of windows.
        prompt_len, output_len: tokens of each of them.
        engine: arguments of ``LLM`` in every mode.
    """

    window_len: int = 1024
    max_windows: int = 40
    num_prompts: int = 32
    prompt_len: int = 96
    output_len: int = 64
    engine: LLMOptions = field(
        default_factory=lambda: LLMOptions(pool_gib=1.0, speculative_config=NO_SPECULATION)
    )


FULL = Plan()
QUICK = Plan(
    window_len=128,
    max_windows=4,
    num_prompts=3,
    prompt_len=32,
    output_len=8,
    engine=QUICK_ENGINE,
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, little text"
    )
    parser.add_argument("--child", choices=MODES, help="internal: run as the measured process")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.child:
        print(json.dumps(measure_mode(options.model, MODES[options.child].options, plan)))
        return 0
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        model = str(folder or options.model or "smollm2-135m")
        figures = measure(model, options.quick)
    write_json({"modes": figures}, options.json)
    return 1 if "failed" in figures["float32"] else 0


def measure(model: str, is_quick: bool) -> dict[str, dict[str, Any]]:
    """Measure every mode in a process of its own; print and return the figures by mode.

    A mode that this version or machine does not have has ``failed``, the reason.
    """
    print(f"{'':<10}" + "".join(f"{column:>18}" for column in COLUMNS))
    print(f"{'reach':<10}" + "".join(f"{REACH.get(column, ''):>18}" for column in COLUMNS))
    reference: dict[str, Any] | None = None
    figures = {}
    for mode in MODES:
        command = [sys.executable, "-m", "experiments.quality", "--child", mode, "--model", model]
        try:
            raw = run_child([*command, *(["--quick"] if is_quick else [])], LIMIT_S)
        except ChildError as error:
            figures[mode] = {"failed": str(error)}
        else:
            reference = reference or raw
            figures[mode] = compare(raw, reference)
        cells = (f"{figures[mode].get(column, '-'):>18.5}" for column in COLUMNS)
        print(f"{mode:<10}" + "".join(cells) + f"  {figures[mode].get('failed', '')}", flush=True)
    return figures


def compare(raw: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a mode over those of float32, both as ``measure_mode`` returns them."""
    pairs = [*zip(raw["greedy"], reference["greedy"], strict=True)]
    equal = [sum(1 for _ in takewhile(_is_equal, zip(*pair, strict=True))) for pair in pairs]
    num_tokens = len(reference["greedy"][0])
    same_top = [a == b for a, b in zip(raw["top1"], reference["top1"], strict=True)]
    return {
        "perplexity": math.exp(raw["nll"]),
        "perplexity_ratio": math.exp(raw["nll"] - reference["nll"]),
        "num_tokens": len(raw["top1"]),
        "top1_agreement": sum(same_top) / len(same_top),
        "greedy_agreement": sum(equal) / len(equal) / num_tokens,
        "greedy_equal": sum(count == num_tokens for count in equal) / len(equal),
        "weights_mib": raw["weights_bytes"] / 2**20,
        "weights_ratio": raw["weights_bytes"] / reference["weights_bytes"],
    }


def _is_equal(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]


def measure_mode(model: str, options: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Run one mode over the text, in this process.

    Returns:
        ``nll``, the mean negative log-likelihood of a token, nats; ``top1``, the most probable
        token at each position of the windows; ``greedy``, the tokens that follow each prompt;
        ``weights_bytes``.
    """
    from kvflow_jax import LLM, SamplingParams

    engine: dict[str, Any] = {**plan.engine, **options}
    with LLM(model, progress=False, **engine) as llm:
        assert llm.tokenizer is not None
        windows = windows_of(llm.tokenizer.encode(text()), plan.window_len, plan.max_windows)
        scored = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        entries = [
            entry
            for completion in llm.generate(windows, scored, progress=False)
            for entry in completion.prompt_logprobs
        ]
        greedy = SamplingParams(max_tokens=plan.output_len, temperature=0.0, ignore_eos=True)
        prompts = [window[: plan.prompt_len] for window in windows[: plan.num_prompts]]
        outputs = llm.generate(prompts, greedy, progress=False)
        return {
            "nll": -sum(entry.logprob for entry in entries) / len(entries),
            "top1": [entry.top[0][0] for entry in entries],
            "greedy": [list(output.token_ids) for output in outputs],
            "weights_bytes": llm.weights_bytes,
        }


def text() -> str:
    """Return the text that is scored."""
    files = [path for pattern in TEXTS for path in sorted(Path(ROOT).glob(pattern))]
    return "\n".join(path.read_text() for path in files)


def windows_of(tokens: Sequence[int], window_len: int, max_windows: int) -> list[list[int]]:
    """Return windows without overlap, evenly spread over the tokens; the rest is left out."""
    starts = range(0, len(tokens) - window_len + 1, window_len)
    num = min(max_windows, len(starts))
    chosen = [starts[i * len(starts) // num] for i in range(num)]
    return [list(tokens[start : start + window_len]) for start in chosen]


if __name__ == "__main__":
    raise SystemExit(main())
