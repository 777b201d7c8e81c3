"""A report as one HTML file that needs no other."""

from __future__ import annotations

import base64

import jinja2

from research.report.document import Document

STYLE = """
:root { color-scheme: light dark; --ink: #22252a; --faint: #6a7078; --rule: #c9cdd2;
  --paper: #fdfdfb; --link: #0b5c92; }
@media (prefers-color-scheme: dark) { :root { --ink: #dcdfe3; --faint: #979ea7; --rule: #444a52;
  --paper: #16181b; --link: #7cc0ee; } figure img { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.4rem 6rem; max-width: 46rem; background: var(--paper);
  color: var(--ink); font: 1.02rem/1.58 Charter, "Bitstream Charter", "Sitka Text", Cambria,
  Georgia, serif; -webkit-text-size-adjust: 100%; }
header { text-align: center; margin-bottom: 2.6rem; }
h1 { font-size: 1.75rem; line-height: 1.25; font-weight: 600; margin: 0 0 .5rem; }
header p { color: var(--faint); margin: 0; font-size: .95rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .7rem; }
section.abstract { margin: 0 1.6rem; font-size: .98rem; }
section.abstract h2 { font-size: 1rem; text-align: center; margin: 0 0 .5rem; }
p { margin: .55rem 0; hyphens: auto; }
figure { margin: 1.6rem 0; }
figure img { display: block; width: 100%; height: auto; margin: 0 auto .5rem;
  mix-blend-mode: multiply; }
@media (prefers-color-scheme: dark) { figure img { mix-blend-mode: screen; } }
figcaption, caption, .note { font-size: .86rem; line-height: 1.45; color: var(--faint); }
.scroll { overflow-x: auto; margin: 1.6rem 0; }
@media (min-width: 60rem) { .scroll { margin-left: -5rem; margin-right: -5rem; }
  .scroll > div { min-width: calc(100% - 10rem) !important; } }
.scroll > div { width: fit-content; max-width: 100%; min-width: 100%; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; padding-bottom: .5rem; }
caption b, figcaption b { color: var(--ink); font-weight: 600; }
th { font-weight: 600; border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink);
  vertical-align: bottom; white-space: nowrap; }
th, td { padding: .26rem .55rem; text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
td { white-space: nowrap; border-bottom: 1px solid transparent; }
.prose th:last-child, .prose td:last-child { text-align: left; white-space: normal;
  min-width: 18rem; }
.prose td { vertical-align: top; }
a { color: var(--link); }
tr:last-child td { border-bottom: 1.5px solid var(--ink); }
tbody tr:hover td { border-bottom-color: var(--rule); }
.note { margin: .45rem 0 0; width: 0; min-width: 100%; }
@media print { body { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ document.title }}</h1>
<p>{{ document.subtitle }}</p>
{% for file, what in document.beside %}
<p><a href="{{ file }}">{{ what }}</a></p>
{% endfor %}
</header>
{% set count = namespace(table=0, figure=0) %}
{% for section in document.sections %}
<section{% if loop.first %} class="abstract"{% endif %}>
{% if section.heading %}
<h2>{{ section.heading }}</h2>
{% endif %}
{% for sentence in section.sentences %}
<p>{{ sentence }}</p>
{% endfor %}
</section>
{% for table in section.tables %}
{% set count.table = count.table + 1 %}
<div class="scroll"><div>
<table{% if table.prose %} class="prose"{% endif %}>
<caption><b>Table {{ count.table }}.</b> {{ table.title }}</caption>
<thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% if table.note %}
<p class="note">{{ table.note }}</p>
{% endif %}
</div></div>
{% endfor %}
{% for plot in section.plots %}
{% set count.figure = count.figure + 1 %}
<figure>
<img alt="{{ plot.caption }}" src="data:image/png;base64,{{ images[plot.name] }}">
<figcaption><b>Figure {{ count.figure }}.</b> {{ plot.caption }}</figcaption>
</figure>
{% endfor %}
{% endfor %}
</body>
</html>
""")


def render(document: Document) -> str:
    """Give the page; plots are inside it, and nothing is fetched when it is opened."""
    images = {
        plot.name: base64.b64encode(plot.png).decode()
        for section in document.sections
        for plot in section.plots
    }
    return PAGE.render(document=document, images=images, style=STYLE)
