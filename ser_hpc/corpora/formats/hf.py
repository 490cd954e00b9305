"""Parse a dataset of Hugging Face's `datasets` on disk, a folder of Arrow or parquet files, without that library.

Layout   What `Dataset.save_to_disk` makes: ROOT/state.json, dataset_info.json, data-*.arrow; or `DatasetDict.save_to_disk`:
         ROOT/dataset_dict.json and such a folder for each split; or parquet files anywhere below ROOT, as a download from the
         hub has them, whose names or folders begin with the split: data/train-00000-of-00002.parquet.
Columns  Sound is the column of the feature Audio, or a struct of bytes and path, or a text column of paths (audio, path, file,
         file_name). Emotion, speaker and all else are chosen by name (`column_names.py`); a ClassLabel's number becomes its
         name.
Audio    Sound inside the dataset is laid out as files, ROOT/.ser_hpc_audio/../<hash of the bytes>, as everything downstream
         reads recordings by path: ROOT must be writable and have room for them. What is there is not written again; once the
         shards are packed, the folder may be deleted.
Ids      Split and name of the clip's file; the row's number is added where that is missing or not unique.
Corpus   Named after the folder.
Splits   A dataset whose clips are all in one split defines none: the hub calls undivided data train.

Nothing of the dataset is run: no loading script, no pickle.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import column_names, hf_tables
from ser_hpc.corpora.formats.hf_tables import LAYOUT, HfSound, HfTable
from ser_hpc.corpora.parse_result import AUDIO, ParseResult, make_result, require_folder
from ser_hpc.corpora.spelling import plain_id
from ser_hpc.corpora.utterance import Utterance

EXTRACTED = ".ser_hpc_audio"


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
    tables = hf_tables.read_hf_tables(require_folder(root, LAYOUT))
    for table in tables:
        column_names.require_columns(table.path, table.values, column_names.choose_columns(table.values))
    clips: list[HfClip] = []
    skipped: list[tuple[Path, str]] = []
    numbers: Counter[str] = Counter()
    for table in tables:
        emotion = column_names.choose_columns(table.values)["emotion"]
        for texts, sound in table.rows():
            number = numbers[table.split]
            numbers[table.split] += 1
            audio = _recording(root, table.path, sound) if texts[emotion] else "no emotion"
            if isinstance(audio, Path):
                name = PureWindowsPath(sound.path).stem  # splits at slashes of both kinds
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


def _recording(root: Path, table: Path, sound: HfSound) -> Path | str:
    """Return the file of a row's sound, written if it is inside the dataset; or the reason why there is none."""
    if sound.payload:
        return _laid_out(root, sound.payload, Path(sound.path).suffix.lower())
    if not sound.path:
        return "no sound"
    places = [folder / sound.path for folder in (table.parent, root)]
    return next((place for place in places if place.is_file()), f"no recording {sound.path}")


def _laid_out(root: Path, payload: bytes, suffix: str) -> Path:
    """Return the file below `root` that holds these bytes. Raises UserError where it cannot be written."""
    digest = hashlib.sha256(payload).hexdigest()[:32]
    path = root / EXTRACTED / digest[:2] / f"{digest}{suffix if suffix in AUDIO else ''}"
    try:
        if not path.is_file() or path.stat().st_size != len(payload):
            with write_aside(path) as temporary:
                temporary.write_bytes(payload)
    except OSError as error:
        raise UserError(
            f"the dataset's sound must be laid out as files in {root / EXTRACTED}, which cannot be written: {error}. Make the "
            "folder writable, or copy the dataset to a place that is"
        ) from error
    return path
