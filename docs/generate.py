"""Generate the pages of the documentation that the code writes.

python -m docs.generate            # write docs/flags.md and docs/sampling.md
python -m docs.generate --check    # fail if one is out of date
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from kvflow_jax.requests.param import Integer, Number
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams
from kvflow_jax.serve.command_line import make_parser

HERE = Path(__file__).parent


def flags_page() -> str:
    """Return the page of the server's flags, by group, as Markdown."""
    lines = [
        "# Flags of the server",
        "",
        "`python -m kvflow_jax.serve --help` prints the same; the code generates this page. "
        "`LLM` takes the settings of Model, Engine and Cache as arguments: `--max-num-seqs 8` is "
        "`max_num_seqs=8`. They are the fields of `LoadConfig`, `EngineConfig` and `CacheConfig`, "
        "where each is defined.",
    ]
    for group in make_parser()._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if not actions:
            continue
        lines += ["", f"## {(group.title or '').capitalize()}", "", "| flag | |", "|---|---|"]
        for action in actions:
            names = ", ".join(f"`{name}`" for name in action.option_strings)
            value = action.metavar or "" if action.nargs != 0 else ""
            if action.choices and action.nargs != 0:
                value = "|".join(map(str, action.choices))
            value = value.replace("|", " \\| ")
            text = (action.help or "").replace("%%", "%").replace("|", "\\|")
            lines.append(f"| {f'{names} {value}'.strip()} | {text} |")
    return "\n".join(lines) + "\n"


def sampling_page() -> str:
    """Return the page of the sampling parameters, as Markdown."""
    about = inspect.getdoc(SamplingParams) or ""
    lines = [
        "# Sampling parameters",
        "",
        *about.split("\n\nArgs:")[0].replace("``", "`").splitlines(),
        "",
        "They are the fields of `SamplingParams` in Python, and of the bodies of",
        "`POST /v1/chat/completions` and `POST /v1/completions`, where null is the default. Over",
        "HTTP that is the model's own, if it has one: [Serving](serving.md#sampling-defaults).",
        "Any other value is an error that names the field. The code generates this page.",
        "",
        "| parameter | | accepts | default |",
        "|---|---|---|---|",
    ]
    defaults = SamplingParams()
    for name, param in PARAMS.items():
        names = f"`{name}`"
        if param.http_name:
            names += f", in bodies `{param.http_name}`"
        accepts = param.accepts
        if isinstance(param, Integer | Number) and param.http_off is not None:
            accepts += f"; in bodies also {param.http_off}, the default"
        lines.append(
            f"| {names} | {param.doc} | {accepts} | {_in_words(getattr(defaults, name))} |"
        )
    lines += [
        "",
        "In the bodies, `n` asks for several answers. A chat takes `max_completion_tokens` for",
        "`max_tokens`, and `logprobs: true` with `top_logprobs` for `logprobs`. A text completion",
        "has up to 16 new tokens by default, and `echo` with `max_tokens: 0` has none.",
    ]
    return "\n".join(lines) + "\n"


def _in_words(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) else "none"


def main() -> int:
    """Write the pages, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Write the pages of the documentation that the code generates."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    exit_code = 0
    for name, page in {"flags.md": flags_page(), "sampling.md": sampling_page()}.items():
        path = HERE / name
        if not check:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            print(f"docs/{name} is out of date; run: python -m docs.generate")
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
