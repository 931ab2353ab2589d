"""Run ``python -m experiments.quality``; the code is in ``experiments.bench.quality``."""

from experiments.bench.quality import main

if __name__ == "__main__":
    raise SystemExit(main())
