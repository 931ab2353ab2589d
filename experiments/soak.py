"""Run ``python -m experiments.soak``; the code is in ``experiments.bench.soak``."""

from experiments.bench.soak import main

if __name__ == "__main__":
    raise SystemExit(main())
