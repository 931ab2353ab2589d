"""Run ``python -m experiments.serve_bench``; the code is in ``experiments.bench.serve_bench``."""

from experiments.bench.serve_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
