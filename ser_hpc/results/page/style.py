"""Style the page: light and dark by the reader's own setting, from 320 px on, and for print."""

from __future__ import annotations

from collections.abc import Mapping

from ser_hpc.results.figures.shapes import DARK, LIGHT, Colour

_GROUNDS = {"light": ("#ffffff", "#f6f8fa", "#fff4e5", "#fdecea"), "dark": ("#0d1117", "#161b22", "#2b2111", "#331614")}
_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:66rem;padding:1rem clamp(.9rem,3vw,2rem) 3rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;overflow-wrap:break-word}
h1{font-size:1.5rem;line-height:1.25;margin:.4rem 0 .1rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p,ul,dl{margin:.5rem 0;max-width:46rem}
ul{padding-left:1.2rem}
a{color:var(--one)}
.quiet{color:var(--muted)}
.skip{position:absolute;left:-99rem}
.skip:focus{position:static}
nav{font-size:.9rem;margin:.8rem 0}
nav a{display:inline-block;margin:0 .9rem 0 0;padding:.25rem 0}
:focus-visible{outline:2px solid var(--two);outline-offset:2px}
.warning,.incomplete{border-left:.35rem solid var(--two);background:var(--warning);padding:.5rem .9rem;margin:.6rem 0;
border-radius:0 .3rem .3rem 0}
.incomplete{background:var(--incomplete)}
.warning p,.incomplete p{margin:.2rem 0;max-width:none}
.hero{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;align-items:center;background:var(--panel);border:1px solid var(--grid);
border-radius:.5rem;padding:1rem 1.2rem;margin:1rem 0}
.hero>div{flex:1 1 15rem}
.hero>figure{flex:1 1 20rem;margin:0}
.score{font-size:3.2rem;font-weight:650;line-height:1.1;font-variant-numeric:tabular-nums}
.score small{display:block;font-size:1rem;font-weight:400;line-height:1.4}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;margin:.8rem 0 0}
.facts div{min-width:4.5rem}
.facts dt{font-size:.8rem;color:var(--muted)}
.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
.about{display:grid;grid-template-columns:minmax(6rem,auto) 1fr;gap:.35rem 1rem;max-width:none}
.about dt{color:var(--muted)}
.about dd{margin:0;overflow-wrap:anywhere}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1.2rem 2rem;align-items:start}
.columns>*{min-width:0}
figure{margin:.4rem 0}
figure svg{display:block;width:100%;max-width:34rem;height:auto}
figcaption{font-size:.88rem;color:var(--muted);margin-top:.3rem;max-width:34rem}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.4rem,1fr));gap:.7rem}
.small svg{width:100%;height:auto;display:block}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:1rem;padding:0;list-style:none;
max-width:none}
.clips li{border:1px solid var(--grid);border-radius:.4rem;padding:.6rem .7rem;min-width:0}
.clips svg,.clips img{display:block;width:100%;height:3rem}
.clips img{height:5rem;image-rendering:auto}
.clips audio{width:100%;margin-top:.4rem}
.clips p{margin:.1rem 0;font-size:.92rem}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.3rem .7rem .3rem 0;text-align:right;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
th.word,td.word{text-align:left}
td.long{white-space:normal;min-width:12rem}
tbody th{font-weight:400}
thead th{color:var(--muted);font-weight:600;position:sticky;top:0;background:var(--page)}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--one);padding:.25rem 0}
footer{margin-top:2.5rem;border-top:1px solid var(--grid);padding-top:.8rem;font-size:.88rem;color:var(--muted)}
svg text{font-family:inherit}
svg polyline{fill:none}
.key{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;vertical-align:-.05rem;margin-right:.25rem}
.key.one{background:var(--one)}.key.two{background:var(--two)}.key.ink{background:var(--ink);border-radius:0;rotate:45deg;scale:.8}
@media (max-width:40rem){.about{grid-template-columns:1fr;gap:0}.about dd{margin-bottom:.6rem}.hero{padding:.8rem .7rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav,.skip,audio{display:none}h2,h3{break-after:avoid}
figure,.clips li,tr,.hero{break-inside:avoid}.scroll{overflow:visible}thead th{position:static}
figure svg{max-width:11cm}.columns{grid-template-columns:1fr 1fr}table{font-size:8pt}
td,th{white-space:normal}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def style_sheet() -> str:
    """Return the style sheet; print is light, whatever the reader's setting."""
    roles = "".join(f".fill-{role}{{fill:var(--{role})}}.line-{role}{{stroke:var(--{role})}}" for role in LIGHT)
    light, dark = _variables(LIGHT, "light"), _variables(DARK, "dark")
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}{_RULES}{roles}"


def _variables(colours: Mapping[Colour, str], scheme: str) -> str:
    grounds = zip(("page", "panel", "warning", "incomplete"), _GROUNDS[scheme], strict=True)
    named = "".join(f"--{name}:{colour};" for name, colour in [*colours.items(), *grounds])
    return f":root{{color-scheme:{scheme};{named}}}"
