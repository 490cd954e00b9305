"""Parse anyone's WebDataset: tars whose samples are a recording and its annotations, as webdataset's TarWriter makes them.

Layout   A folder of tars (.tar, .tar.gz, .tgz), one tar, or a pattern: ROOT/emo-{000000..000005}.tar, ROOT/emo-*.tar. A sample
         is the members of one key, one after the other: <key>.wav (flac, mp3, ogg ...) with <key>.json, an object of plain
         values, and texts: .cls, .txt, or named by their field (.speaker, .emotion.txt).
Columns  The JSON's names and the texts' endings; emotion, speaker and all else are chosen by name (`column_names.py`). Where no
         column says the emotion it is the .cls, else the .txt: a label's number is its word then, which a label set may map.
Audio    Recordings are laid out as files, FOLDER/.ser_hpc_audio/../<hash of the bytes>, as everything downstream reads them by
         path: the tars' folder must be writable and have room. Once the shards are packed, that folder may be deleted.
Ids      Split and key of the sample; its number is added where they are not unique. The same sample twice is taken once.
Corpus   Named after the folder; or the tar or pattern without its numbers, where that is not the name of a split.
Splits   What a tar's name or folder begins with (train-000000.tar), where no column says it; a single one is no split.

Whatever else is in a sample (.pyd, .pth, .npy, images) is counted and told, and never opened: no pickle is ever loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ser_hpc.core.errors import counted, listed
from ser_hpc.corpora.formats import column_names, wds_tars
from ser_hpc.corpora.formats.embedded_audio import lay_out
from ser_hpc.corpora.formats.wds_tars import LAYOUT, TarSample
from ser_hpc.corpora.parse_result import COPY, ParseResult, make_result
from ser_hpc.corpora.spelling import plain_id
from ser_hpc.corpora.utterance import Utterance

_EMOTION_ELSE = ("cls", "txt")


@dataclass(frozen=True, slots=True)
class WdsClip:
    """A sample with its recording laid out; `number` counts the samples of its split from 0."""

    sample: TarSample
    split: str
    number: int
    audio: Path

    @property
    def named(self) -> str:
        return plain_id(self.split, self.sample.key)


def parse(root: Path) -> ParseResult:
    """Return every sample of the tars of `root` that has sound and an emotion; the sound is written out beside the tars.

    Raises UserError where there is no tar, one is damaged or hostile, or no column says emotion or speaker.
    """
    tars, passed_over = wds_tars.find_tars(root), Counter[str]()
    found = {tar: wds_tars.read_samples(tar, passed_over) for tar in tars}
    chosen = _choose_columns(sample for samples in found.values() for sample in samples)
    columns = sorted({column for samples in found.values() for sample in samples for column in sample.texts})
    column_names.require_columns(root, columns, chosen)
    folder = root if root.is_dir() else tars[0].parent
    clips: list[WdsClip] = []
    skipped: list[tuple[Path, str]] = []
    seen: set[tuple[object, ...]] = set()
    numbers: Counter[str] = Counter()
    for tar, samples in found.items():
        problems = [_problem(sample, chosen["emotion"]) for sample in samples]
        skipped += [(tar, f"sample {s.key}: {problem}") for s, problem in zip(samples, problems, strict=True) if problem]
        usable = [sample for sample, problem in zip(samples, problems, strict=True) if not problem]
        split = _split_of(tar.relative_to(folder) if tar.is_relative_to(folder) else Path(tar.name))
        payloads = wds_tars.read_sounds(tar, [sample.sounds[0] for sample in usable])
        for sample, payload in zip(usable, payloads, strict=True):
            audio = lay_out(folder, payload, sample.sounds[0].suffix)
            if (what := (split, sample.key, audio, *sorted(sample.texts.items()))) in seen:
                skipped.append((tar, f"sample {sample.key}: {COPY}"))
                continue
            seen.add(what)
            clips.append(WdsClip(sample, split, numbers[split], audio))
            numbers[split] += 1
    names, corpus = Counter(clip.named for clip in clips), _corpus_name(root)
    utterances = [_utterance(corpus, clip, chosen, unique=names[clip.named] == 1) for clip in clips]
    if len({clip.split for clip in utterances}) == 1:
        utterances = [replace(clip, split="") for clip in utterances]
    warnings = [*column_names.renaming_warnings(chosen), *_warnings(clips, passed_over)]
    return make_result(root, LAYOUT, utterances, skipped).with_warnings(warnings)


def _choose_columns(samples: Iterable[TarSample]) -> dict[str, str]:
    """Return the column of each field, of all that occur in any sample."""
    columns = dict.fromkeys(column for sample in samples for column in sample.texts)
    chosen = column_names.choose_columns(columns)
    if "emotion" not in chosen and (others := [column for column in _EMOTION_ELSE if column in columns]):
        chosen["emotion"] = others[0]
    return chosen


def _problem(sample: TarSample, emotion: str) -> str:
    return sample.problem or ("" if sample.sounds else "no sound") or ("" if sample.texts.get(emotion) else "no emotion")


def _split_of(tar: Path) -> str:
    """Return the split that a tar's name, or the nearest folder's, begins with; "" if none does."""
    return next((split for name in (tar.stem, *(p.name for p in tar.parents)) if (split := column_names.split_of(name))), "")


def _corpus_name(root: Path) -> str:
    if root.is_dir():
        return column_names.corpus_name(root.resolve().name)
    plain = re.sub(r"\.(tar|tar\.gz|tgz)$", "", root.name, flags=re.IGNORECASE)
    plain = re.sub(r"\{\d+\.\.\d+\}|\*|\d{4,}", "", plain).strip("-_. ")
    named = plain and column_names.normalized(plain) not in column_names.SPLITS
    return column_names.corpus_name(plain if named else root.resolve().parent.name)


def _utterance(corpus: str, clip: WdsClip, chosen: Mapping[str, str], *, unique: bool) -> Utterance:
    texts = clip.sample.texts
    fields = {name: texts.get(column, "") for name, column in chosen.items()}
    fields["split"] = fields.get("split") or clip.split
    others = {column: text for column, text in texts.items() if column not in chosen.values()}
    return Utterance(
        corpus=corpus,
        utterance_id=clip.named if unique else plain_id(clip.split, clip.sample.key, str(clip.number)),
        audio_path=clip.audio,
        **column_names.make_annotation(fields, others),
    )


def _warnings(clips: Sequence[WdsClip], passed_over: Mapping[str, int]) -> list[str]:
    """Return what a user should know: members that were not read, keys with several recordings."""
    warnings = []
    if passed_over:
        each = listed([f"{number} {ending}" for ending, number in sorted(passed_over.items())])
        warnings.append(f"members that are neither sound nor text were not opened: {each}")
    if several := [clip.sample.key for clip in clips if len(clip.sample.sounds) > 1]:
        many = counted(len(several), "sample")
        warnings.append(f"{many} with several recordings, of which the first is used: {listed(several, 3)}")
    return warnings
