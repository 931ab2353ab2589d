"""Run ``python -m experiments.paper``."""

from experiments.paper.evaluation import main

if __name__ == "__main__":
    main()
