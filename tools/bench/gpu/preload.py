"""Imported once, by the process that all parts are forked from; what is missing is missed by the part that needs it.

Nothing here may ask CUDA anything: a process that was forked after that cannot use it (`torch.cuda.is_available` asks the
driver's library, not CUDA, where PYTORCH_NVML_BASED_CUDA_CHECK is set). So not transformers' Trainer, which imports DeepSpeed.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

MODULES = ("torch", "torchaudio", "transformers", "ser_hpc.train", "ser_hpc.engine.loop", "speed.contenders", "speed.rounds")

for name in MODULES:
    with suppress(ImportError):
        import_module(name)
