"""Run ``python -m experiments.report``."""

from experiments.report.writer import main

if __name__ == "__main__":
    main()
