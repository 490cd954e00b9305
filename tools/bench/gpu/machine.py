"""What machine this is: its GPUs, versions, and the two ceilings, products and copies, that all figures are held against."""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from speed.work import measured_peak

from gpu.told import write_told
from ser_hpc.core import cli

PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "deepspeed", "speechbrain", "numpy", "pydantic")
_COPIED = 2**30  # floats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    gpus = torch.cuda.device_count()
    device = torch.device("cuda" if gpus else "cpu")
    told: dict[str, Any] = {"gpus": gpus, "architecture": platform.machine(), "cores": os.cpu_count()}
    told |= {"python": platform.python_version(), "packages": {name: versioned(name) for name in PACKAGES}}
    write_told(out, told)
    if gpus:
        about = torch.cuda.get_device_properties(0)
        told |= {"gpu": about.name, "memory_gb": about.total_memory / 1e9, "multiprocessors": about.multi_processor_count}
        told |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nccl": torch.cuda.nccl.version()}
        write_told(out, told)
        told |= {"copy_bytes_a_second": copied(device)}
    told["peak_tflops"] = measured_peak(device) / 1e12
    write_told(out, told)
    print(told)
    return 0


def versioned(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def copied(device: torch.device) -> float:
    """Bytes read and written a second by a copy on the device."""
    source = torch.randn(_COPIED, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


if __name__ == "__main__":
    cli.run_main(main)
