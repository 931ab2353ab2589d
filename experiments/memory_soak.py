"""Run ``python -m experiments.memory_soak``; the code is in ``experiments.bench.memory_soak``."""

from experiments.bench.memory_soak import main

if __name__ == "__main__":
    raise SystemExit(main())
