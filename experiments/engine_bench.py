"""Run ``python -m experiments.engine_bench``; the code is in ``experiments.bench.engine_bench``."""

from experiments.bench.engine_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
