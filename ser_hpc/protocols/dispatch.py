"""Call a protocol by the name in the settings: a new one is a line here. `folds` checks what it makes."""

from __future__ import annotations

from collections.abc import Callable

from ser_hpc.config.extensions import explain_errors
from ser_hpc.config.protocols import ProtocolSettings
from ser_hpc.core.errors import UserError, listed
from ser_hpc.protocols.clip_table import ClipTable, ProtocolOptions
from ser_hpc.protocols.cross_corpus import cross_corpus, leave_one_corpus_out
from ser_hpc.protocols.leave_one_out import leave_one_session_out, leave_one_speaker_out, speaker_groups
from ser_hpc.protocols.official_splits import Drafts, given_split, iemocap_ses01, superb

_PROTOCOLS: dict[str, Callable[[ClipTable, ProtocolOptions], Drafts]] = {
    "leave_one_session_out": leave_one_session_out,
    "leave_one_speaker_out": leave_one_speaker_out,
    "speaker_groups": speaker_groups,
    "leave_one_corpus_out": leave_one_corpus_out,
    "cross_corpus": cross_corpus,
    "given_split": given_split,
    "iemocap_ses01": iemocap_ses01,
    "superb": superb,
}


def divide(clips: ClipTable, protocol: str | ProtocolSettings, options: ProtocolOptions) -> Drafts:
    """Make a protocol's folds and notes, unchecked. Raises UserError where the corpus does not allow protocol or count."""
    if isinstance(protocol, ProtocolSettings):
        with explain_errors(protocol.kind):
            drafts, notes = protocol.divide(clips, options.count)
            return list(drafts), [str(note) for note in notes]
    if protocol not in _PROTOCOLS:
        raise UserError(f"there is no protocol {protocol!r}; choose one of {listed(PROTOCOLS)}")
    if protocol != "cross_corpus" and (options.train_corpora or options.test_corpora):
        raise UserError(f"folds.train_corpora and folds.test_corpora are for the protocol cross_corpus, not for {protocol}")
    return _PROTOCOLS[protocol](clips, options)


PROTOCOLS: tuple[str, ...] = tuple(_PROTOCOLS)
