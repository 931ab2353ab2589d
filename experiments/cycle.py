"""Run ``python -m experiments.cycle``; the code is in ``experiments.paper.cycle``."""

from experiments.paper.cycle import main

if __name__ == "__main__":
    raise SystemExit(main())
