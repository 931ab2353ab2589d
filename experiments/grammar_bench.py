"""Run ``python -m experiments.grammar_bench``; its code is ``experiments.bench.grammar_bench``."""

from experiments.optional_packages import main_of

main = main_of("experiments.bench.grammar_bench")

if __name__ == "__main__":
    raise SystemExit(main())
