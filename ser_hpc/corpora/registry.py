"""The corpora that the project can read, by name. A new one is a file with a `parse` in parsers/, and a line here; or a parser
of one's own, `module:function`, anywhere (`outside_parser`)."""

from __future__ import annotations

import difflib

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora import demo_speech
from ser_hpc.corpora.formats import audformat, hf, table, wds
from ser_hpc.corpora.outside_parser import load_parser
from ser_hpc.corpora.parse_result import Parser
from ser_hpc.corpora.parsers import (
    crema_d,
    emodb,
    esd,
    hindi,
    iemocap,
    iesc,
    kai_indian,
    meld,
    msp_improv,
    msp_podcast,
    ravdess,
    savee,
    tess,
    urdu,
    urduser,
)

PARSERS: dict[str, Parser] = {
    "emodb": emodb.parse,
    "iemocap": iemocap.parse,
    "crema_d": crema_d.parse,
    "ravdess": ravdess.parse,
    "tess": tess.parse,
    "savee": savee.parse,
    "esd": esd.parse,
    "msp_podcast": msp_podcast.parse,
    "msp_improv": msp_improv.parse,
    "meld": meld.parse,
    "urdu": urdu.parse,
    "urduser": urduser.parse,
    "iesc": iesc.parse,
    "hindi": hindi.parse,
    "kai_indian": kai_indian.parse,
    "hf": hf.parse,
    "audformat": audformat.parse,
    "webdataset": wds.parse,
    "csv": table.parse,
    "jsonl": table.parse,
    "demo": demo_speech.parse,
}
FORMATS = (
    "hf",
    "audformat",
    "webdataset",
    "csv",
    "jsonl",
    "demo",
)  # not one published corpus: of any names, emotions and counts


def get_parser(name: str) -> Parser:
    """Return the parser of a corpus, one of PARSERS or `module:function`. Raises UserError naming what there is."""
    if ":" in name:
        return load_parser(name)
    if name not in PARSERS:
        near = difflib.get_close_matches(name, PARSERS, n=1)
        hint = (
            f"; did you mean {near[0]}?"
            if near
            else "; for any other write a table and use csv, or a parser and name it MODULE:FUNCTION"
        )
        raise UserError(f"unknown corpus {name!r}; known: {listed(list(PARSERS), 30)}{hint}")
    return PARSERS[name]
