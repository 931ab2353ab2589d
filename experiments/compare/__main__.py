"""Run ``python -m experiments.compare``."""

from experiments.compare.comparison import main

if __name__ == "__main__":
    main()
