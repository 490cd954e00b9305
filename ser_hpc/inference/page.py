"""A page that predicts what is recorded or dropped there, for the machine that it runs on: nothing of it comes from the net.

Gradio makes the page, told to send nothing home; and as its scripts are not ours, a Content-Security-Policy has the browser
refuse whatever they might ask of another host. Recordings lie in a folder that is removed with the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ser_hpc.core.errors import UserError, counted
from ser_hpc.inference.predictor import Predictor
from ser_hpc.inference.recordings import ArrayRecording, FileRecording
from ser_hpc.inference.results import ClipPrediction, Failure
from ser_hpc.inference.windows import Windows
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import BadClipError

LOCAL = ("127.0.0.1", "localhost")
WINDOWS = Windows(4.0, 1.0)
_LONG_S, _MOST_S = 8.0, 3600.0
_MOST_BYTES = 1 << 30
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; frame-ancestors 'none'"
_CSS = """
.gradio-container { max-width: 720px !important; margin: 0 auto !important; overflow-x: clip; }
.over-time { display: grid; padding-top: 26px; grid-template-columns: max-content 1fr; gap: 3px 10px; align-items: center; }
.over-time svg { width: 100%; height: 18px; display: block; background: var(--background-fill-secondary); border-radius: 3px; }
.over-time rect { fill: var(--color-accent); }
.over-time .times { display: flex; justify-content: space-between; font-size: 0.85em; opacity: 0.75; }
"""


@dataclass(frozen=True, slots=True)
class Heard:
    """What is said of a recording: the classes' probabilities, a remark, and, if it is long, its windows' predictions."""

    probabilities: dict[str, float]
    remark: str
    windows: list[ClipPrediction]


def listen(predictor: Predictor, path: Path) -> Heard:
    """Predict a sound file: as one clip, or, from 8 s on, by the mean of its windows. Raises UserError."""
    samples = _read(path)
    most = predictor.most_s
    long = len(samples) > RATE * min(_LONG_S, most or _LONG_S)
    cutter = Windows(min(WINDOWS.size_s, most or WINDOWS.size_s), WINDOWS.hop_s) if long else None
    found: list[ClipPrediction] = []
    for each in predictor.stream([ArrayRecording("the recording", samples)], cutter):
        if isinstance(each, Failure):
            raise UserError(str(each))
        found.append(each)
    mean = {name: float(np.mean([each.probabilities[name] for each in found])) for name in predictor.classes}
    label = max(mean, key=mean.__getitem__)
    how = f", the mean of {counted(len(found), 'window')} of {found[0].end_s - found[0].start_s:g} s" if long else ""
    strange = " It is unlike all that this probe was fitted to: that may mean little." * any(each.strange for each in found)
    remark = f"**{label}**, with a confidence of {mean[label]:.2f} ({len(samples) / RATE:.1f} s{how}).{strange}"
    return Heard(mean, remark, found if long else [])


def _read(path: Path) -> np.ndarray:
    blocks, count = [], 0
    try:
        for block in FileRecording(path.name, path).blocks():
            blocks.append(block)
            count += len(block)
            if count > _MOST_S * RATE:
                raise UserError(f"more than {_MOST_S / 60:g} minutes are for the command: python -m ser_hpc.predict")
    except BadClipError as error:
        raise UserError(f"the recording {error}") from error
    if not count:
        raise UserError("the recording holds no sound")
    return np.concatenate(blocks)


def chart(found: Sequence[ClipPrediction]) -> str:
    """Draw the classes' probabilities over time, a row a class: the fuller the colour, the more probable. HTML; of no windows,
    none."""
    if not found:
        return ""
    first, last = found[0].start_s, found[-1].end_s
    middles = [(each.start_s + each.end_s) / 2 for each in found]
    edges = [first, *((a + b) / 2 for a, b in pairwise(middles)), last]
    rows = []
    for name in found[0].probabilities:
        cells = "".join(
            f'<rect x="{begin - first:.3f}" width="{end - begin:.3f}" height="1" opacity="{each.probabilities[name]:.3f}">'
            f"<title>{each.start_s:.0f} to {each.end_s:.0f} s: {each.probabilities[name]:.2f}</title></rect>"
            for each, (begin, end) in zip(found, pairwise(edges), strict=True)
        )
        view = f'viewBox="0 0 {last - first:.3f} 1" preserveAspectRatio="none"'
        rows.append(f'<span>{escape(name)}</span><svg {view} role="img" aria-label="{escape(name)}">{cells}</svg>')
    times = "".join(f"<span>{_clock(first + (last - first) * part)}</span>" for part in (0, 0.5, 1))
    return f'<div class="over-time">{"".join(rows)}<span></span><div class="times">{times}</div></div>'


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextmanager
def open_page(predictor: Predictor, host: str = LOCAL[0]) -> Iterator[Any]:
    """Make the page as an ASGI application, for as long as the context lasts. Raises UserError where Gradio is missing.

    `host`: where it will be served. On this machine's own address it answers only to requests that name it so: a page of
    another site, whose name is made to lead here, is none.
    """
    with TemporaryDirectory(prefix="ser_hpc-web-") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": uploads}
        try:
            import gradio
            from fastapi import FastAPI, Request
            from starlette.middleware.trustedhost import TrustedHostMiddleware
        except ImportError as error:
            raise UserError(f"the page needs the package gradio: pip install 'ser_hpc[web]' ({error})") from error
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        if host in LOCAL:
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))

        @app.middleware("http")
        async def keep_to_this_host(request: Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["Content-Security-Policy"] = POLICY
            return response

        yield gradio.mount_gradio_app(
            app,
            _blocks(gradio, predictor),
            path="/",
            server_name=host,
            footer_links=[],
            max_file_size=_MOST_BYTES,
            ssr_mode=False,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=_CSS,
        )


def _blocks(gradio: Any, predictor: Predictor) -> Any:
    """Lay the page out: a recording in; label, probabilities, and probabilities over time out."""

    def heard(path: str | None) -> tuple[Any, str, Any]:
        if path is None:
            return gradio.update(value=None, visible=False), "", gradio.update(value="", visible=False)
        try:
            found = listen(predictor, Path(path))
        except UserError as error:
            raise gradio.Error(str(error), duration=None, print_exception=False) from error
        drawn = chart(found.windows)
        return (
            gradio.update(value=found.probabilities, visible=True),
            found.remark,
            gradio.update(value=drawn, visible=bool(drawn)),
        )

    with gradio.Blocks(title="Speech emotion", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.Markdown(
            f"## What does it sound like?\n\n{', '.join(predictor.classes)}: by `{predictor.source}`, on this machine."
        )
        sound = gradio.Audio(sources=["upload", "microphone"], type="filepath", label="A recording", editable=False, buttons=[])
        remark = gradio.Markdown()
        probabilities = gradio.Label(label="Probabilities", show_heading=False, visible=False)
        over_time = gradio.HTML(label="Over time", show_label=True, container=True, visible=False)
        sound.change(heard, sound, [probabilities, remark, over_time], api_name="listen")
        gradio.Markdown(
            "It tells how speech sounds, as its annotators would, not what a person feels: do not judge people by it."
        )
    return blocks
