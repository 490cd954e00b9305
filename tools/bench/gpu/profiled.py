"""Where the GPU's time goes in a contender's updates: kernels by name and kind, and how long none of them runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": re.compile(r"flash|fmha|attention|softmax", re.I),
    "optimizer": re.compile(r"adam|multi_tensor|foreach|lpnorm", re.I),
    "products": re.compile(r"gemm|gemv|nvjet|cutlass|xmma|conv|dgrad|wgrad|fprop|mma|sm90|sm80", re.I),
    "communication": re.compile(r"nccl", re.I),
    "copies": re.compile(r"memcpy|memset|copy", re.I),
}
_SHOWN = 40


def profiled(work: Callable[[], float], device: str) -> dict[str, Any]:
    """`work` returns the seconds that it counts; here everything that it did is looked at, its first update too.

    `busy_s`: some kernel runs; `kinds`: seconds by kind, the rest being normalisations, activations, casts and the like.
    """
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as seen:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    told: dict[str, tuple[int, float]] = {}
    spans = []
    inside: Any = seen.profiler
    for event in inside.kineto_results.events():
        if (event.device_type().name == "CUDA") != (device == "cuda") or event.name().startswith("ProfilerStep"):
            continue
        begin, seconds = event.start_ns() / 1e9, event.duration_ns() / 1e9
        spans.append((begin, begin + seconds))
        count, before = told.get(event.name(), (0, 0.0))
        told[event.name()] = (count + 1, before + seconds)
    kinds: dict[str, float] = {}
    for name, (_, seconds) in told.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + seconds
    largest = sorted(told.items(), key=lambda item: -item[1][1])[:_SHOWN]
    whole, busy = covered(spans)
    return {
        "whole_s": whole,
        "busy_s": busy,
        "kernels": sum(count for count, _ in told.values()),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "largest": [{"name": name[:160], "count": count, "seconds": seconds} for name, (count, seconds) in largest],
    }


def kind_of(kernel: str) -> str:
    return next((kind for kind, names in KINDS.items() if names.search(kernel)), "the rest")


def covered(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """From the first begin to the last end; and how much of that some span covers."""
    ordered = sorted(spans)
    if not ordered:
        return 0.0, 0.0
    busy, until = 0.0, ordered[0][0]
    for begin, end in ordered:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return until - ordered[0][0], busy
