"""Lay out the page, in Jinja2. A Python file, as of those a run's copy of the code is made."""

from __future__ import annotations

TEMPLATE = """\
{% macro grid(of, name) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ name }}">
<table>
<thead><tr>{% for cell in of.header %}<th scope="col"{% if loop.index0 in of.left %} class="word"{% endif %}>{{ cell }}</th>\
{% endfor %}</tr></thead>
<tbody>
{% for row in of.rows %}
<tr>{% for cell in row %}
<td{% if loop.index0 in of.left %} class="word{{ " long" if cell|length > 24 }}"{% endif %}><bdi>{{ cell }}</bdi></td>
{%- endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro folded(of, name) %}
<details><summary>{{ name }}</summary>{{ grid(of, name) }}</details>
{% endmacro %}
{% macro drawn(of, caption) %}
<figure>{{ svg(of) }}<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}
{% macro listed(items) %}
<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ name }}: {{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#scores">Skip to the scores</a>
<header>
<p class="quiet">Report of a cross-validation</p>
<h1><bdi>{{ name }}</bdi></h1>
<p>{{ about.data }}.</p>
</header>
<main>
{% if missing %}
<div class="incomplete" role="note">
<p><strong>{{ incomplete }}</strong> There is no score of the run yet.</p>
<details><summary>Which, and why</summary>{{ listed(missing) }}</details>
</div>
{% endif %}
{% for warning in warnings %}
<div class="warning" role="note"><p><strong>Warning:</strong> {{ warning }}</p></div>
{% endfor %}
{% if demo %}<div class="warning" role="note"><p>{{ demo }}</p></div>{% endif %}
<section id="scores" aria-label="Result">
{% if not finished %}
<p>{{ headline }}</p>
{% else %}
<div class="hero">
<div>
{% if complete %}
<div class="score">{{ number("uar.pooled") }}<small>pooled unweighted average recall (UAR)<br>{{ interval }}</small></div>
{% endif %}
<dl class="facts">
{% for fact in facts %}<div><dt>{{ fact[0] }}</dt><dd>{{ fact[1] }}</dd></div>{% endfor %}
</dl>
</div>
{% if hero %}{{ drawn(hero, hero_caption) }}{% endif %}
</div>
<p>{{ headline }}</p>
{% endif %}
{% if meaning %}<p>{{ meaning }}</p>{% endif %}
</section>
<nav aria-label="On this page">{% for section in sections %}<a href="#{{ section[0] }}">{{ section[1] }}</a>{% endfor %}</nav>
<h2 id="trained">What was trained</h2>
<dl class="about">{% for topic, text in about.items() %}<dt>{{ topic }}</dt><dd><bdi>{{ text }}</bdi></dd>{% endfor %}</dl>
{% if finished %}
{% if over %}<p class="incomplete"><strong>All that follows is of {{ over }} only.</strong></p>{% endif %}
{% if tables.scores or tables.panel %}
<h2 id="listening">Scores, and what is reached without listening</h2>
<div class="columns">
{% if tables.scores %}<div>{{ grid(tables.scores, "Scores") }}
{% if tables.seeds %}<h3>UAR of each seed</h3>{{ grid(tables.seeds, "UAR of each seed") }}{% endif %}</div>{% endif %}
{% if tables.panel %}<div>{{ grid(tables.panel, "What is reached without listening") }}
<p class="quiet">{{ how_panel }}</p></div>{% endif %}
</div>
{% if remarks %}{{ listed(remarks) }}{% endif %}
{% endif %}
{% if tables.tasks %}
<h2 id="tasks">Other tasks</h2>
{{ grid(tables.tasks, "Scores of the other tasks") }}
{% endif %}
<h2 id="classes">Classes</h2>
<div class="columns">
{{ drawn(figures.confusion,
"Rows are true classes: percent of the class, and below it, where there is room, the number of predictions.") }}
<div>
{{ drawn(figures.classes, "Recall of each class; bars are 95% intervals over the speakers of the class.") }}
{% if confused %}<h3>Most often confused</h3>{{ listed(confused) }}{% endif %}
</div>
</div>
{{ grid(tables.classes, "Classes") }}
{{ folded(tables.counts, "Confusion matrix as a table: " ~ counted) }}
{{ folded(tables.shares, "Confusion matrix as a table: percent of the true class") }}
<h2 id="trials">Folds and seeds</h2>
{{ drawn(figures.folds, folds_caption) }}
{{ folded(tables.trials, "All trials as a table") }}
{% for sentence in absent %}<p>{{ sentence }}</p>{% endfor %}
{% if figures.learning %}
<h2 id="learning">How it learned</h2>
<div class="columns">
{{ drawn(figures.learning,
"Every trial by epoch, or by evaluation on dev; diamonds: the best dev score, whose weights were tested.") }}
{% if small %}<details{% if small|length <= 12 %} open{% endif %}><summary>Each trial by itself</summary>
<p class="quiet"><span class="key one"></span>dev UAR, from 0 to 1
<span class="key two"></span>training loss, on a scale of its own
<span class="key ink"></span>the one that was chosen</p>
<div class="small">{% for each in small %}<div>{{ svg(each) }}</div>{% endfor %}</div></details>{% endif %}
</div>
{% endif %}
{% if tables.groups or unseen %}
<h2 id="groups">For whom it works</h2>
{% for sentence in unseen %}<p>{{ sentence }}</p>{% endfor %}
{% if figures.speakers or figures.groups %}
<div class="columns">
{% if figures.speakers %}{{ drawn(figures.speakers, speakers_caption) }}{% endif %}
{% if figures.groups %}{{ drawn(figures.groups,
"Groups of clips; bars are 95% intervals over the speakers of the group.") }}{% endif %}
</div>
{% endif %}
{% if tables.groups %}{{ folded(tables.groups, "Groups as a table") }}{% endif %}
{% endif %}
<h2 id="confidence">How sure it is</h2>
<div class="columns">
{{ drawn(figures.reliability,
"On the dashed line, of clips of confidence 0.8 just 80% are right. Below it, the model is too sure.") }}
<div><p>{{ calibration }}</p></div>
</div>
{% if mistakes %}
<h3>Wrong, and sure of it</h3>
<p>The test clips whose mean prediction over all seeds is wrong with the highest confidence: mislabelled, unusual, or hard.</p>
<ul class="clips">
{% for clip in mistakes %}
<li>
<p><strong><bdi>{{ clip.name }}</bdi></strong>, speaker <bdi>{{ clip.speaker }}</bdi></p>
<p>is <strong><bdi>{{ clip.truth }}</bdi></strong> ({{ clip.of_truth }}), predicted
<strong><bdi>{{ clip.predicted }}</bdi></strong> ({{ clip.confidence }})</p>
{% if clip.picture %}{{ svg(clip.picture) }}\
<img src="{{ clip.spectrogram }}" alt="Spectrogram of {{ clip.name }}, 0 to 8 kHz">
<p class="quiet">{{ clip.seconds }}</p>{% endif %}
{% if clip.audio %}<audio controls preload="none" src="{{ clip.audio }}"
aria-label="Listen to {{ clip.name }}"></audio>{% endif %}
</li>
{% endfor %}
</ul>
{% endif %}
{% endif %}
<h2 id="protocol">Protocol</h2>
<p>{{ protocol }}</p>
{% if ledger %}<p>{{ ledger }}</p>{% endif %}
{{ folded(tables.fold_parts, "Who is in which part of which fold") }}
<h2 id="notes">Notes</h2>
{{ listed(notes) }}
<h3>How to read the numbers</h3>
{{ listed(reading) }}
</main>
<footer>The same numbers stand in report.json and report.md beside this page; every test prediction in predictions.parquet.
This page loads nothing from the network{% if with_audio %}; it holds recordings of the corpus{% else %} and holds no sound\
{% endif %}.
</footer>
</body>
</html>
"""
