"""Run ``python -m experiments.device_check``; the code: ``experiments.device.device_check``."""

from experiments.device.device_check import main

if __name__ == "__main__":
    raise SystemExit(main())
