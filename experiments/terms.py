"""Run ``python -m experiments.terms``; the code is in ``experiments.compare.ablation``."""

from experiments.compare.ablation import main

if __name__ == "__main__":
    raise SystemExit(main())
