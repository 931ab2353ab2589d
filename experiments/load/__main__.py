"""Run ``python -m experiments.load``; the code is in ``experiments.load.scenarios``."""

from experiments.optional_packages import main_of

main = main_of("experiments.load.scenarios")

if __name__ == "__main__":
    raise SystemExit(main())
