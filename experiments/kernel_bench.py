"""Run ``python -m experiments.kernel_bench``; the code is in ``experiments.bench.kernel_bench``."""

from experiments.bench.kernel_bench import main

if __name__ == "__main__":
    raise SystemExit(main())
