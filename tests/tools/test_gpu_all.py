"""The one call that a GPU is lent for: whatever happens to it, it ends in time and what was measured is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from gpu.call import BAD_FORK
from gpu.clock import Clock
from gpu.kept import Kept
from gpu.material import unpack_wheels
from gpu.parts import GOALS, MACHINE, Given, groups, prepare
from gpu.summary import summarised
from gpu.told import write_told
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).parents[2] / "tools" / "bench"
# A call with the parts of its second argument; each is a module beside it.
CALL = """
import json, sys
from pathlib import Path
from gpu.call import Call, Part
from gpu.clock import Clock
from gpu.kept import Kept

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    kept = Kept(folder / "gpu.json", {}, lambda parts: sorted(parts))
    call = Call(kept, Clock(float(sys.argv[3])), folder, folder / "gpu.log", {}, "json")
    try:
        for group in json.loads(sys.argv[2]):
            call.run([Part(**part) for part in group])
    finally:
        call.end()
"""
# Writes a round every now and then, and has a child, whose number it tells.
ROUNDS = """
import json, os, subprocess, sys, time
from pathlib import Path
from ser_hpc.core.atomic_io import write_json
child = subprocess.Popen(["sleep", "60"])
for number in range(int(sys.argv[2])):
    write_json(Path(sys.argv[1]), {"rounds": number, "pids": [os.getpid(), child.pid]})
    time.sleep(0.1)
child.kill()
"""
# As if CUDA could not be used in a fork.
FORKED = f"""
import os, sys
from pathlib import Path
from ser_hpc.core.atomic_io import write_json
if not Path(sys.argv[1] + ".first").exists():
    Path(sys.argv[1] + ".first").touch()
    os._exit({BAD_FORK})
write_json(Path(sys.argv[1]), {{"started": "again"}})
"""


def part(name: str, module: str, *arguments: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "module": module, "arguments": ["{out}", *arguments], "limit_s": 30, "least_s": 1} | more


def started(folder: Path, groups: list[list[dict[str, Any]]], limit_s: float = 60) -> subprocess.Popen[bytes]:
    for name, text in {"call": CALL, "rounds": ROUNDS, "forked": FORKED}.items():
        (folder / f"{name}.py").write_text(text)
    paths = os.pathsep.join(str(path) for path in (folder, BENCH, BENCH.parents[1]))
    command = [sys.executable, str(folder / "call.py"), str(folder), json.dumps(groups), str(limit_s)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.DEVNULL)


def told(folder: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((folder / "gpu.json").read_text())["parts"]
    return parts


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@given(st.floats(0, 600), st.floats(0, 600), st.floats(0, 600), st.floats(0, 600))
def test_a_share_is_within_limit_and_call_or_none(limit: float, passed: float, most: float, least: float) -> None:
    clock = Clock(limit, began=time.monotonic() - passed)
    share = clock.share(most, least)
    if share is None:
        assert min(most, limit - passed) < least + 0.1
    else:
        assert least <= share <= most and share <= limit - passed + 0.1


def test_the_clock_began_with_the_process() -> None:
    code = "import time; time.sleep(0.5); from gpu.clock import age; print(age())"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(BENCH)}, capture_output=True)
    assert 0.5 <= float(said.stdout) < 60


def test_killed_a_call_leaves_what_it_has_and_nobody_behind(tmp_path: Path) -> None:
    call = started(tmp_path, [[part("first", "rounds", "2")], [part("second", "rounds", "600")]])
    until(lambda: (tmp_path / "gpu.json").exists() and told(tmp_path).get("second", {}).get("result", {}).get("rounds", 0) > 3)
    call.send_signal(signal.SIGKILL)
    call.wait()
    found = told(tmp_path)
    assert found["first"]["how"] == "done" and found["first"]["result"]["rounds"] == 1
    assert found["second"]["how"] == "running"
    until(lambda: all(is_gone(pid) for pid in found["second"]["result"]["pids"]))


def test_what_takes_too_long_is_ended_with_its_children_and_kept(tmp_path: Path) -> None:
    assert started(tmp_path, [[part("long", "rounds", "600", limit_s=3), part("beside", "rounds", "2")]]).wait(60) == 0
    found = told(tmp_path)
    assert found["long"]["how"] == "ended after 3 s" and found["long"]["result"]["rounds"] > 0
    assert found["beside"]["how"] == "done" and found["beside"]["seconds"] < 3
    assert all(is_gone(pid) for pid in found["long"]["result"]["pids"])


def test_what_cannot_run_is_named(tmp_path: Path) -> None:
    lacking = part("lacking", "rounds", "1", needs=["numpy", "no_such_package"])
    late = part("late", "rounds", "1", least_s=61)
    assert started(tmp_path, [[lacking, late], [part("failing", "no_such_module")]]).wait(60) == 0
    assert {name: found["how"] for name, found in told(tmp_path).items()} == {
        "lacking": "left out: no_such_package not installed",
        "late": "left out: no time left",
        "failing": "failed with code 1",
    }
    assert "no_such_module" in (tmp_path / "gpu.log").read_text()


def test_a_second_call_takes_over_what_is_done_on_the_same_gpu(tmp_path: Path) -> None:
    def kept(name: str, gpu: str) -> Kept:
        found = Kept(tmp_path / name, {}, lambda parts: None)
        found.part("machine", how="done", result={"gpu": gpu})
        return found

    first = kept("first.json", "H100")
    for name, how in (("a", "done"), ("b", "failed with code 1"), ("c", "left out: no time left"), ("prepare", "done")):
        first.part(name, how=how, result={"of": name})
    second, other = kept("second.json", "H100"), kept("other.json", "H200")
    assert second.adopt(tmp_path / "first.json") is None
    assert [name for name in ("machine", "a", "b", "c", "prepare") if second.has(name)] == ["a"]
    assert second.result("a") == {"of": "a"} and second.told["parts"]["machine"]["result"] == {"gpu": "H100"}
    assert "H200" in (other.adopt(tmp_path / "first.json") or "") and not other.has("a")


def test_where_a_fork_cannot_use_the_gpu_parts_are_started_from_nothing(tmp_path: Path) -> None:
    assert started(tmp_path, [[part("forked", "forked")], [part("next", "rounds", "1")]]).wait(60) == 0
    assert told(tmp_path)["forked"]["result"] == {"started": "again"}
    assert {found["how"] for found in told(tmp_path).values()} == {"done"}


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_every_part_has_a_name_of_its_own_and_ours_comes_before_c_before_a(gpus: int, tmp_path: Path) -> None:
    all_of_it = Given(gpus, 700.0, tmp_path, tmp_path / "shards", tmp_path / "model", ["budget_seconds=240"])
    order = [part.name for group in groups(all_of_it) for part in group]
    assert len(order) == len(set(order)) and ("ranks" in order) == (gpus > 1)
    for before, after in (("ours", "C"), ("C", "A")):
        assert max(order.index(f"{before}:{family}") for family in GOALS) < min(order.index(f"{after}:{f}") for f in GOALS)
    assert {"checks", "resume", "finetune", "memory", "C:wav2vec2-large:dropout"} < set(order)
    for part in (MACHINE, prepare(all_of_it), *(part for group in groups(all_of_it) for part in group)):
        assert find_spec(part.module), part.module
        assert part.arguments.count("--train") <= 1, "argparse would take the last list alone"
    without = Given(gpus, 700.0, tmp_path, None, None, [])
    assert not {"resume", "finetune"} & {part.name for group in groups(without) for part in group}


def test_the_summary_compares_in_the_same_family_and_scales_goals_by_the_peak() -> None:
    def rated(*rates: float) -> dict[str, Any]:
        rounds = {str(number): rate for number, rate in enumerate(rates, 1)}
        return {"how": "done", "result": {"rates": rounds, "of_peak": rounds, "peak_gb": 1.0, "how": "so"}}

    parts = {"machine": {"how": "done", "result": {"gpus": 1, "peak_tflops": 395.0}}, "prepare": {"how": "running"}}
    parts |= {
        "ours:wav2vec2-large": rated(2000, 2100, 1000),
        "C:wav2vec2-large": rated(1000),
        "ours:wav2vec2-large:zero1": rated(9),
    }
    rows = summarised(parts)["families"]
    assert rows["wav2vec2-large"]["ours"]["goal_here"] == 1950
    assert rows["wav2vec2-large"]["ours"]["goals_met"] == {"rate": True, "against C": True}
    assert rows["wav2vec2-large"]["C"]["ours_is_faster"] == 2
    assert "goal_here" not in rows["wav2vec2-large:zero1"]["ours"]


def test_wheels_are_unpacked_where_their_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("numpy", "never_heard_of"):
        with ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
    assert unpack_wheels(tmp_path, tmp_path / "site") == ["never_heard_of"]
    assert [file.name for file in (tmp_path / "site").iterdir()] == ["never_heard_of.py"]
    assert sys.path[-1] == str(tmp_path / "site"), "behind what is installed"


@pytest.mark.slow
def test_the_common_parent_of_all_parts_asks_cuda_nothing() -> None:
    """A process that was forked after CUDA was asked cannot use it."""
    code = """
import os, sys, torch
asked = []
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    setattr(torch._C, name, lambda *_, name=name: asked.append(name) or 0)
import gpu.preload
assert set(gpu.preload.MODULES) <= set(sys.modules), "all of it is there"
assert "deepspeed" not in sys.modules and not asked, asked
"""
    paths = os.pathsep.join([str(BENCH), str(BENCH.parents[1])])
    env = os.environ | {"PYTHONPATH": paths, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_what_is_not_finite_becomes_a_word(tmp_path: Path) -> None:
    write_told(tmp_path / "a.json", {"loss": float("nan"), "rates": [1.0, float("inf")], "no": False})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": "nan", "rates": [1.0, "inf"], "no": False}
