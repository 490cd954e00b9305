"""Parse a dataset of Hugging Face's `datasets` on disk, through that library: pip install 'ser_hpc[hf]'.

Layout   What `Dataset.save_to_disk` makes: ROOT/state.json, dataset_info.json, data-*.arrow; or `DatasetDict.save_to_disk`:
         ROOT/dataset_dict.json and such a folder for each split; or parquet files anywhere below ROOT, as a download from the
         hub has them, whose names or folders begin with the split: data/train-00000-of-00002.parquet.
Columns  Sound is a column of the feature Audio, or a struct of bytes and path, or a text column of paths (audio, path, file,
         file_name). Emotion, speaker and all else are chosen by name (`column_names.py`); a ClassLabel's number becomes its
         name.
Audio    Sound inside the dataset is laid out as files, ROOT/.ser_hpc_audio/../<hash of the bytes>, as everything downstream
         reads recordings by path: ROOT must be writable and have room for them. What is there is not written again; once the
         shards are packed, the folder may be deleted.
Ids      Split and name of the clip's file; the row's number is added where that is missing or not unique.
Corpus   Named after the folder.
Splits   A dataset whose clips are all in one split defines none: the hub calls undivided data train.

The library is asked for the rows alone, as they lie in the files: it asks no network, decodes no sound, copies nothing into a
cache, and runs nothing of the dataset, neither a loading script nor a pickle.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow as pa

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.formats import column_names, embedded_audio
from ser_hpc.corpora.parse_result import ParseResult, make_result, require_folder
from ser_hpc.corpora.spelling import plain_id
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "state.json and data-*.arrow, or dataset_dict.json and such a folder a split, or parquet files"
PATH_COLUMNS = ("audio", "audio_path", "path", "file", "file_name", "filename", "wav")
ROWS_AT_ONCE = 32  # the sound of so many rows is in memory together


@dataclass(frozen=True, slots=True)
class HfTable:
    """A folder of `save_to_disk` or a parquet file; its split as the dataset calls it ("" = none); the columns that matter."""

    path: Path
    split: str
    dataset: Any  # datasets.Dataset, or its IterableDataset
    audio: str
    values: tuple[str, ...]

    def rows(self) -> Iterator[tuple[dict[str, str], bytes | None, str]]:
        """Yield (text by column, the recording's bytes if the dataset holds them, its path or "") of every row, in order.

        Raises UserError where the file is damaged.
        """
        features = self.dataset.features
        classes = {name: getattr(features[name], "names", None) for name in self.values}
        with _explained(self.path):
            batches = self.dataset.select_columns([self.audio, *self.values]).with_format("arrow")
            for batch in batches.iter(batch_size=ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    sound = row[self.audio]
                    sound = sound if isinstance(sound, dict) else {"path": sound}
                    texts = {name: _text(row[name], names) for name, names in classes.items()}
                    yield texts, sound.get("bytes"), sound.get("path") or ""


@dataclass(frozen=True, slots=True)
class HfClip:
    """A row with a recording. `number` counts the rows of its split from 0; `name` is its file's, "" if it has none."""

    table: HfTable
    number: int
    name: str
    audio: Path
    texts: dict[str, str]

    @property
    def named(self) -> str:
        return plain_id(self.table.split, self.name)


def parse(root: Path) -> ParseResult:
    """Return every clip of the dataset `root`; sound that is inside it is written out below `root`.

    Raises UserError where `root` is no such dataset, no column says emotion or speaker, or `root` cannot be written.
    """
    tables = read_hf_tables(require_folder(root, LAYOUT))
    for table in tables:
        column_names.require_columns(table.path, table.values, column_names.choose_columns(table.values))
    clips: list[HfClip] = []
    skipped: list[tuple[Path, str]] = []
    numbers: Counter[str] = Counter()
    for table in tables:
        emotion = column_names.choose_columns(table.values)["emotion"]
        for texts, payload, path in table.rows():
            number = numbers[table.split]
            numbers[table.split] += 1
            audio = _recording(root, table.path, payload, path) if texts[emotion] else "no emotion"
            if isinstance(audio, Path):
                name = PureWindowsPath(path).stem  # splits at slashes of both kinds
                clips.append(HfClip(table, number, name, audio, texts))
            else:
                skipped.append((table.path, f"row {number}{f' of {table.split}' if table.split else ''}: {audio}"))
    names, corpus = Counter(clip.named for clip in clips), column_names.corpus_name(root.resolve().name)
    utterances = [_utterance(corpus, clip, unique=bool(clip.name) and names[clip.named] == 1) for clip in clips]
    if len({clip.split for clip in utterances}) == 1:
        utterances = [replace(clip, split="") for clip in utterances]
    return make_result(root, LAYOUT, utterances, skipped).with_warnings(
        column_names.renaming_warnings(column_names.choose_columns(tables[0].values))
    )


def read_hf_tables(root: Path) -> list[HfTable]:
    """Return the parts of the dataset `root`, in a fixed order.

    Raises UserError where there are none, one cannot be read or has no column of recordings, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading a Hugging Face dataset needs its library: pip install 'ser_hpc[hf]' ({error})") from error
    if any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        with _explained(root):
            saved = datasets.load_from_disk(str(root))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}
        return [_saved_table(root, split, dataset) for split, dataset in splits.items()]
    if not (found := _parquet(root)):
        raise UserError(f"{root} is no dataset of Hugging Face's `datasets`; expected {LAYOUT}")
    tables = []
    for path in found:
        # A file at a time: its name tells the split, and leads to recordings beside it. The library makes a lock in its cache.
        with _explained(path), tempfile.TemporaryDirectory() as cache:
            dataset = datasets.IterableDataset.from_parquet(str(path), cache_dir=cache, batch_size=ROWS_AT_ONCE)
        tables.append(_table(path, _split_of(path.relative_to(root)), dataset))
    return tables


def _saved_table(root: Path, split: str, dataset: Any) -> HfTable:
    """Raise UserError where a file that the dataset names, as ../../other.arrow, lies outside its folder."""
    for file in dataset.cache_files:
        named = Path(os.path.abspath(file["filename"]))  # noqa: PTH100 - a link in the folder is a file of it
        if not named.is_relative_to(root.absolute()):
            raise UserError(f"{root} names {file['filename']}, which is not a file inside the dataset")
    return _table(root / split, split, dataset)


def _table(path: Path, split: str, dataset: Any) -> HfTable:
    schema = dataset.features.arrow_schema
    kinds = {name: schema.field(name).type for name in schema.names}
    sounds = [name for name in kinds if _holds_sound(kinds[name])]
    audio = [*sounds, *(name for name in PATH_COLUMNS if name in kinds and _is_text(kinds[name]))]
    if not audio:
        raise UserError(
            f"{path}: no column holds recordings. Its columns are {listed(schema.names, 40)}; looked for were the feature "
            f"Audio, a struct of bytes and path, and a text column {listed(PATH_COLUMNS)}"
        )
    values = tuple(name for name, kind in kinds.items() if name != audio[0] and _is_plain(kind))
    return HfTable(path, split, dataset, audio[0], values)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what `datasets` and pyarrow raise for files that are damaged, or of another kind, into a UserError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a dataset: {error or type(error).__name__}") from error


def _parquet(root: Path) -> list[Path]:
    found = sorted(root.rglob("*.parquet"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def _split_of(path: Path) -> str:
    """Return the split that a parquet file's name, or the nearest folder's, begins with; "" if none does."""
    return next((split for name in (path.stem, *(p.name for p in path.parents)) if (split := column_names.split_of(name))), "")


def _holds_sound(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or any(is_a(kind) for is_a in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))


def _text(value: Any, classes: list[str] | None) -> str:
    """Return a value as text. A ClassLabel's number is its name; -1 stands for an unlabelled row."""
    if classes and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else ""
    return column_names.text_of(value)


def _utterance(corpus: str, clip: HfClip, *, unique: bool) -> Utterance:
    chosen = column_names.choose_columns(clip.table.values)
    fields = {field: clip.texts[column] for field, column in chosen.items()}
    fields["split"] = fields.get("split") or clip.table.split
    others = {column: text for column, text in clip.texts.items() if column not in chosen.values()}
    return Utterance(
        corpus=corpus,
        utterance_id=clip.named if unique else plain_id(clip.table.split, clip.name, str(clip.number)),
        audio_path=clip.audio,
        **column_names.make_annotation(fields, others),
    )


def _recording(root: Path, table: Path, payload: bytes | None, path: str) -> Path | str:
    """Return the file of a row's sound, written if it is inside the dataset; or the reason why there is none."""
    if payload:
        return embedded_audio.lay_out(root, payload, Path(path).suffix.lower())
    if not path:
        return "no sound"
    places = [folder / path for folder in (table, table.parent, root)]
    return next((place for place in places if place.is_file()), f"no recording {path}")
