"""Write TensorBoard's event files: a folder for the run, and in it one for each trial; without torch or TensorFlow.

Each folder has two files, which are written whole, aside, and renamed: the same record makes the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.results.tracking.record import Record
from ser_hpc.results.tracking.tracker import Tracker, import_library

_CURVES, _TEXTS = "events.out.tfevents.0.ser_hpc.numbers", "events.out.tfevents.1.ser_hpc.texts"
_HEAD_BYTES = 12  # before an event's content: its length, and a checksum of that


class TensorBoardTracker(Tracker):
    """A folder of event files. Of the project nothing shows: what lies in one folder is compared."""

    def __init__(self, url: str | None, project: str) -> None:
        super().__init__(url or "tensorboard", project)
        if "://" in str(self.url):
            raise UserError(f"--url is {self.url}, but --to tensorboard writes into a folder of this machine")
        import_library("tensorboard")
        self._folder = Path(str(self.url)).expanduser()

    def keep(self, record: Record) -> int:
        folder = self._folder / record.group / record.name.removeprefix(record.group).strip().replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [(point.step, name, number) for point in record.points for name, number in point.numbers.items()]
        numbers += [(record.step, name, score) for name, score in record.scores.items()]
        settings = "\n".join(f"    {name}={value}" for name, value in record.settings.items())  # a block, as Markdown has it
        texts = {"settings": settings, "summary": record.summary} | {
            name: text for name, text in record.files.items() if name.endswith(".md")
        }
        when = record.started or 0.0  # steps have no time of their own
        before = _count_events(folder / _CURVES)
        _write(folder / _CURVES, [_number(step, name, value, when) for step, name, value in numbers])
        _write(folder / _TEXTS, [_text(name, text, when) for name, text in texts.items()])
        return max(0, len(numbers) - before)

    def close(self) -> str:
        return f"tensorboard --logdir {self._folder}"


def _write(path: Path, events: list[Any]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    with write_aside(path) as temporary, temporary.open("wb") as file:
        writer = RecordWriter(file)
        for event in [Event(file_version="brain.Event:2", wall_time=0.0), *events]:
            writer.write(event.SerializeToString())


def _number(step: int, name: str, value: float, when: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(step=step, wall_time=when, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))


def _text(name: str, text: str, when: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    return Event(step=0, wall_time=when, summary=Summary(value=[Summary.Value(tag=name, metadata=plugin, tensor=tensor)]))


def _count_events(path: Path) -> int:
    """Count the numbers in a file of events, by their lengths alone; 0 where there is none."""
    count, place = -1, 0  # its first event is the version
    content = path.read_bytes() if path.exists() else b""
    while place + _HEAD_BYTES <= len(content):
        place += _HEAD_BYTES + int.from_bytes(content[place : place + 8], "little") + 4
        count += 1
    return max(count, 0)
