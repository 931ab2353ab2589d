"""Run ``python -m experiments.speculation``; the code is in ``experiments.bench.speculation``."""

from experiments.bench.speculation import main

if __name__ == "__main__":
    raise SystemExit(main())
