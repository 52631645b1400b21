"""Compare a device's iterations with the CPU's, and recorded ones with ones made one by one; needs no test runner."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from labkit.tests.steps import check_device, faults
from labkit.variants import VARIANTS


def main() -> int:
    """Print a line a variant and precision; 1 if anything is out of bounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    on_gpu = torch.device(device).type == "cuda"
    print(torch.__version__, torch.cuda.get_device_name(device) if on_gpu else "CPU: nothing is recorded there")
    bad = 0
    for model in VARIANTS:
        for precision in ("fp32", "bf16"):
            found = check_device(device, model, precision, "laptop" if on_gpu else "smoke")
            wrong = faults(found, precision) + (["no recording"] if on_gpu and not found["recorded"] else [])
            shown = ", ".join(f"{name} {value:.2g}" for name, value in found.items())
            print(f"{model:18} {precision}  {'; '.join(wrong) or 'ok'}   ({shown})")
            bad += bool(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
