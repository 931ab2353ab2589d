"""Run ``python -m experiments.load_bench``; the code is in ``experiments.bench.load_bench``."""

from experiments.bench.load_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
