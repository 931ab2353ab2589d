"""Run ``python -m experiments.memory_soak``; the code is in ``experiments.bench.memory_soak``."""

from experiments.optional_packages import main_of

main = main_of("experiments.bench.memory_soak")

if __name__ == "__main__":
    raise SystemExit(main())
