"""The few figures that a call was made for."""

from __future__ import annotations

from statistics import median
from typing import Any

from gpu.parts import GOAL_PEAK, GOAL_RATIO, GOALS


def summarised(parts: dict[str, Any]) -> dict[str, Any]:
    """By family and contender: the median rate, of the machine's peak, how many times faster ours was; and the goals."""
    machine = result(parts, "machine") or {}
    peak = machine.get("peak_tflops") if machine.get("gpus") else None  # the goals are a GPU's
    families: dict[str, Any] = {}
    for name in parts:
        contender, _, rest = name.partition(":")
        found = result(parts, name)
        if rest and found and found.get("rates"):
            row = {"audio_s_per_s": median(found["rates"].values()), "of_peak": median(found["of_peak"].values())}
            row |= {key: found[key] for key in ("peak_gb", "loss", "loss_after", "how") if key in found}
            families.setdefault(rest, {})[contender] = row
    for rest, rows in families.items():
        ours = rows.get("ours")
        if ours is None:
            continue
        for contender, row in rows.items():
            if contender != "ours":
                row["ours_is_faster"] = ours["audio_s_per_s"] / row["audio_s_per_s"]
        if rest in GOALS and peak:
            ours["goal_here"] = GOALS[rest] * peak / GOAL_PEAK
            ours["of_goal"] = ours["audio_s_per_s"] / ours["goal_here"]
            versus = rows.get("C", {}).get("ours_is_faster")
            ours["goals_met"] = {"rate": ours["of_goal"] >= 1, "against C": versus and versus >= GOAL_RATIO}
    return {"families": families, "how": {name: part["how"] for name, part in parts.items()}}


def result(parts: dict[str, Any], name: str) -> Any:
    return parts.get(name, {}).get("result")


def table(summary: dict[str, Any]) -> str:
    lines = [f"{'':34}{'audio-s/s':>10}{'of peak':>9}{'of goal':>9}{'ours is':>9}{'GB':>7}  how"]
    for family, rows in summary["families"].items():
        for contender, row in rows.items():
            goal = f"{row['of_goal']:.1%}" if "of_goal" in row else ""
            faster = f"{row['ours_is_faster']:.2f}x" if "ours_is_faster" in row else ""
            numbers = f"{row['audio_s_per_s']:10,.1f}{row['of_peak']:9.1%}{goal:>9}{faster:>9}{row['peak_gb']:7.1f}"
            lines.append(f"{contender + ' ' + family:34}{numbers}  {row['how']}")
    return "\n".join(lines)
