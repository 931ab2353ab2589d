"""Run ``python -m experiments.report``; the code is in ``experiments.report.writer``."""

from experiments.optional_packages import main_of

main = main_of("experiments.report.writer")

if __name__ == "__main__":
    raise SystemExit(main())
