"""Run ``python -m experiments.serve_bench``; the code is in ``experiments.bench.serve_bench``."""

from experiments.optional_packages import main_of

main = main_of("experiments.bench.serve_bench")

if __name__ == "__main__":
    raise SystemExit(main())
