"""Run ``python -m experiments.grammar_bench``; its code is ``experiments.bench.grammar_bench``."""

from experiments.bench.grammar_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
