"""Run ``python -m experiments.portability``; the code is in ``experiments.device.portability``."""

from experiments.device.portability import main

if __name__ == "__main__":
    raise SystemExit(main())
