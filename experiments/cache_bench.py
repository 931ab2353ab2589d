"""Run ``python -m experiments.cache_bench``; the code is in ``experiments.bench.cache_bench``."""

from experiments.bench.cache_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
