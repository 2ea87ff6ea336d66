"""How the report looks: its parts as one HTML page that holds its style and pictures and needs no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from ..pictures.page import escaped, html_page
from .report import FAILURES, MEANING, SUCCESS, Case, Drawing, Part, run_name, versions
from .tables import AGGREGATIONS, Runs, Table, cell

GLANCE = {
    "classification mAP": ("classification", "mAP"), "pointwise localization mAP, 18 px": ("localization", "18", "mAP"),
    "quality of PRMs, mAP": ("quality", "greedy", "mAP"), "mean IoU": ("segmentation", "mIoU"),
    "mAP^r_0.25": ("instances", "prm: proposals", "mAP^r_0.25"),
    "mAP^r_0.5": ("instances", "prm: proposals", "mAP^r_0.5"),
    "mAP^r_0.75": ("instances", "prm: proposals", "mAP^r_0.75"), "ABO": ("instances", "prm: proposals", "ABO"),
}  # fmt: skip
VERDICT_CLASSES = {"holds": "yes", "does not hold": "no", "not decided": "open"}
NUMBER = re.compile(r"-|[-+]?\d[\d.,]*( ± [\d.]+)?( \[[^]]*\])?")


def page(parts: Sequence[Part], command: str) -> bytes:
    """The whole page, UTF-8. command: what it was made with, to be shown."""
    sections = [section for part in parts for section in _sections(part, several=len(parts) > 1)]
    contents = "".join(f'<li><a href="#s{k}">{escaped(title)}</a></li>' for k, (title, _) in enumerate(sections))
    body = "\n".join(f'<section aria-labelledby="s{k}">\n<h2 id="s{k}">{escaped(title)}</h2>\n{content}\n</section>'
                     for k, (title, content) in enumerate(sections))  # fmt: skip
    title = "Peak Response Mapping: " + "; ".join(part.runs.label for part in parts)
    header = "\n".join(_header(part.runs) for part in parts)
    made = ", ".join(f"{escaped(name)} {escaped(number)}" for name, number in versions().items())
    return html_page(title, _STYLE, f"""{header}
<details class="made"><summary>How this report was made</summary>
<pre>{escaped(command)}</pre>
<p>{made}</p></details>
</header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{body}""")


def _sections(part: Part, several: bool) -> Iterable[tuple[str, str]]:
    """(title, content) of each section about a data set; what its runs do not have is left out."""
    of = f" ({part.runs.label})" if several else ""
    label = part.runs.label
    if part.claims:
        yield f"The paper’s claims{of}", _verdicts(part) + _table(part.claims_table, heading=False)  # noqa: RUF001
    if part.tables:
        yield f"The paper’s tables{of}", "\n".join(_table(table) for table in part.tables)  # noqa: RUF001
    if part.figure_6:
        yield f"Figure 6: quality of Peak Response Maps{of}", _plots(
            part.figure_6, "wide", f"As the paper's Figure 6: {label}. Dots: mean; bars: quartiles; n: maps of all "
            "runs shown. The share is that inside the best instance of the map's class.")  # fmt: skip
    if part.curves:
        yield f"Precision and recall of the masks{of}", _plots(
            part.curves, "small", f"Precision against recall of the method's own masks at an overlap (IoU) of 0.5, a "
            f"panel a class, a line a run: {label}.")  # fmt: skip
    if part.failures:
        plot = _plots([part.failures], "wide", f"Each true instance falls into exactly one category: {label}.")
        yield f"Failures by category{of}", plot + "\n".join(_table(table) for table in part.measures[:2])
    if part.gallery:
        yield f"Successes and failures in pictures{of}", _gallery(part.gallery, f"{label}; {part.gallery_of}")
    more = part.measures[2:] if part.failures else part.measures
    yield f"More measures{of}", "\n".join(_table(table) for table in (*more, part.timing))
    yield f"Settings and training{of}", "\n".join(_settings(run) for run in part.runs.all)


# ---- parts of the page


def _header(runs: Runs) -> str:
    made = runs.all[0]["run"]
    seeds: dict[str, list] = {}
    for run in runs.all:
        seeds.setdefault(run_name(run, seed=False), []).append(run["run"]["seed"])
    networks = "<br>".join(escaped(name) + (f": seed {', '.join(map(str, sorted(some)))}" if None not in some else "")
                           for name, some in seeds.items())  # fmt: skip
    facts = {
        "data set": escaped(made["data"]), "split": escaped(made["split"]),
        "pictures": f"{runs.all[0]['pictures']}, {runs.all[0].get('pictures_with_masks', 0)} with masks",
        "classes": str(len(made["class_names"])), "networks": networks,
    }  # fmt: skip
    rows = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in facts.items())
    figures = ((name, cell(runs.main, *path)) for name, path in GLANCE.items())
    tiles = "".join(f"<div><dt>{_heading(name)}</dt><dd>{_cell_text(text)}</dd></div>"
                    for name, text in figures if text)  # fmt: skip
    which = AGGREGATIONS.get(runs.main[0]["run"]["aggregation"], "no network")
    glance = f'<p class="soft">At a glance, percent, {escaped(which)}:</p>\n<dl class="glance">{tiles}</dl>'
    return f'<dl class="facts">{rows}</dl>\n{glance if tiles else ""}'


def _verdicts(part: Part) -> str:
    found = [claim.verdict for claim in part.claims]
    words = (f'<span class="verdict {kind}">{verdict}: {found.count(verdict)}</span>'
             for verdict, kind in VERDICT_CLASSES.items())  # fmt: skip
    return f'<p class="verdicts">{" ".join(words)}</p>\n'


def _table(table: Table, heading: bool = True) -> str:
    rows = "\n".join(_row(row, groups=[group for group, _ in table.columns]) for row in table.rows)
    notes = "".join(f'<p class="note">{escaped(note)}</p>\n' for note in table.notes)
    name = escaped(table.title)
    title = f"<h3>{_heading(table.title)}</h3>\n" if heading else ""
    return (f'{title}<div class="scroll" role="region" tabindex="0" aria-label="{name}">\n<table>\n<thead>\n'
            f"{_head(table)}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n{notes}")  # fmt: skip


def _head(table: Table) -> str:
    """One row of names, or two, with the groups above their names."""
    grouped = any(group and name for group, name in table.columns)
    numbers = [all(NUMBER.fullmatch(row[k]) for row in table.rows if row[k]) for k in range(len(table.columns))]
    upper, lower = [], []
    for group, columns in groupby(enumerate(table.columns), key=lambda column: column[1][0]):
        names = [(name, " n" if numbers[k] else "") for k, (_, name) in columns]
        kind = _kind(group)
        if grouped and group:
            upper.append(f'<th scope="colgroup" colspan="{len(names)}" class="group{kind}">{_heading(group)}</th>')
            lower += [f'<th scope="col" class="{(kind + n).strip()}">{_heading(name)}</th>' for name, n in names]
        else:
            span = ' rowspan="2"' if grouped else ""
            upper += [f'<th scope="col" class="{n.strip()}"{span}>{_heading(name)}</th>' if name else f"<td{span}></td>"
                      for name, n in names]  # fmt: skip
    return "".join(f"<tr>{''.join(row)}</tr>\n" for row in (upper, lower) if row)


def _row(row: Sequence[str], groups: Sequence[str]) -> str:
    cells = [f'<th scope="row" class="{"long" if len(row[0]) > 20 else ""}">{_heading(row[0])}</th>']
    for text, group in zip(row[1:], groups[1:]):
        if text in VERDICT_CLASSES:
            cells.append(f'<td><span class="verdict {VERDICT_CLASSES[text]}">{text}</span></td>')
            continue
        number = not text or NUMBER.fullmatch(text)
        kind = _kind(group) + (" n" if number else " words")
        cells.append(f'<td class="{kind.strip()}">{_cell_text(text) if number else _heading(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _kind(group: str) -> str:
    """Whose figures a column has, as a CSS class: those of the paper are set apart."""
    return {"paper": " paper", "here": " here"}.get(group.split(":")[0], "")


def _plots(drawings: Sequence[Drawing], kind: str, caption: str) -> str:
    images = "\n".join(_image(drawing.svg, "svg+xml", drawing.text) for drawing in drawings)
    words = f"<figcaption>{escaped(caption)}</figcaption>"
    return f'<figure class="plots {kind}">\n<div>{images}</div>\n{words}\n</figure>\n'


def _gallery(gallery: Mapping[str, list[Case]], label: str) -> str:
    intro = (
        "As the paper's Figure 8. Each strip shows the picture with its true instances outlined (those of the category "
        "filled), the Peak Response Maps of all peaks (dots), and the masks that were found. Colours tell classes. "
        f"Chosen by these counts alone: {label}."
    )
    made = [f"<p>{escaped(intro)}</p>"]
    for category in (SUCCESS, *FAILURES):
        if category not in gallery:
            continue
        cases = "\n".join(_case(case) for case in gallery[category])
        what = "most found, fewest false" if category == SUCCESS else f"a true instance: {MEANING[category]}"
        heading = f"<h3>{escaped(category.capitalize())} <small>{escaped(what)}</small></h3>"
        made.append(f'{heading}\n<div class="cases">\n{cases}\n</div>')
    return "\n".join(made)


def _case(case: Case) -> str:
    tiles = "".join(f'<div>{_image(data, "jpeg", f"{case.name}: {what}")}<span>{escaped(what)}</span></div>'
                    for what, data in case.tiles.items())  # fmt: skip
    legend = "".join('<li><span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>'.format(*colour)
                     + f"{escaped(name)}</li>" for name, colour in case.legend)  # fmt: skip
    instances = ", ".join(f"{name} {count}" for name, count in case.outcomes.items())
    verdicts = ", ".join(f"{name} {count}" for name, count in case.verdicts.items()) or "none"
    return (f'<figure class="case">\n<div class="tiles">{tiles}</div>\n<figcaption><b>{escaped(case.name)}</b> '
            f'<ul class="legend">{legend}</ul><br>true instances: {escaped(instances)}; '
            f"predictions: {escaped(verdicts)}</figcaption>\n</figure>")  # fmt: skip


def _settings(run: dict) -> str:
    made = dict(run["run"])
    settings, training = made.pop("settings", None), made.pop("training", None)
    groups = {"Run": made, "Segmenter": settings, "Training": training}
    tables = "".join(f"<h4>{title}</h4>\n{_pairs(pairs)}" for title, pairs in groups.items() if pairs)
    return f"<details><summary>{escaped(run_name(run))}</summary>\n{tables}</details>"


def _pairs(pairs: Mapping) -> str:
    rows = "".join(f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(_plain(value))}</td></tr>\n'
                   for name, value in pairs.items())  # fmt: skip
    return f'<div class="scroll"><table class="pairs">\n{rows}</table></div>\n'


def _plain(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- words


def _image(data: bytes, kind: str, words: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escaped(words)}">'


def _heading(words: str) -> str:
    """Escaped, with the r of mAP^r raised."""
    return re.sub(r"\b(m?AP)\^r(?:_(?=\d))?", r"\1<sup>r</sup> ", escaped(words))


def _cell_text(words: str) -> str:
    """A figure, its interval in small below."""
    number, bracket, interval = words.partition(" [")
    return escaped(number) + (f" <small>[{escaped(interval)}</small>" if bracket else "")


_STYLE = """
:root { --ink: #1c1c1f; --soft: #5c5c64; --page: #f5f5f4; --card: #fff; --line: #dededc; --paper: #f6efe0;
  --here: #e8f1fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1300px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; line-height: 1.3; overflow-wrap: anywhere; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.02rem; }
h3:first-of-type { margin-top: .25rem; }
h3 small { font-weight: normal; color: var(--soft); margin-left: .35rem; }
h4 { margin: .75rem 0 .25rem; font-size: .95rem; }
p { margin: .5rem 0; max-width: 50rem; }
sup { line-height: 0; font-size: .75em; }
section, nav { margin: 1.25rem 0; padding: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
nav ol { margin: 0; padding: 0 0 0 1.4rem; columns: 20rem; }
a { color: #00528a; }
.soft, .note, figcaption, summary { color: var(--soft); }
.note { margin: .35rem 0 0; font-size: .87rem; }
dl { margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
dt { color: var(--soft); font-size: .87rem; }
.facts, .glance { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin-bottom: .75rem; }
.glance { gap: .6rem; }
.glance div { padding: .5rem .8rem; min-width: 8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.glance dd { font-size: 1.25rem; font-variant-numeric: tabular-nums; }
small { font-size: .78rem; color: var(--soft); }
.glance small, td small { display: block; white-space: nowrap; }
pre { margin: .5rem 0; padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .32rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th, thead td { vertical-align: bottom; font-weight: 600; border-bottom: 2px solid #b9b9b5; }
thead th.group { border-bottom: 1px solid var(--line); text-align: center; }
tbody th { font-weight: normal; max-width: 24rem; }
td.words { min-width: 9rem; }
tbody th.long { min-width: 11rem; }
tr > :first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
thead tr + tr > :first-child { position: static; }
.n { text-align: right; }
td.n { white-space: nowrap; }
thead th.group { text-align: center; }
tr > .paper, thead tr + tr > .paper { background: var(--paper); }
tr > .here, thead tr + tr > .here { background: var(--here); }
.pairs td { overflow-wrap: anywhere; }
.pairs th { color: var(--soft); white-space: nowrap; }
.verdict { display: inline-block; padding: 0 .55rem; border-radius: 1rem; white-space: nowrap; font-size: .87rem; }
.yes { background: #d5efdb; color: #0b5222; }
.no { background: #fbdcd8; color: #8c1710; }
.open { background: #e8e8e6; color: #44444b; }
.verdicts .verdict { font-size: 1rem; padding: .15rem .8rem; margin: 0 .3rem .3rem 0; }
figure { margin: .75rem 0; }
figcaption { margin-top: .4rem; font-size: .87rem; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; }
.plots > div { display: flex; flex-wrap: wrap; gap: 1rem; }
.small > div { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .5rem; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1rem 1.5rem; }
.case { margin: 0; padding-bottom: .75rem; border-bottom: 1px solid var(--line); }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; align-items: start; }
.tiles img { width: 100%; border-radius: 3px; }
.tiles span { display: block; color: var(--soft); font-size: .8rem; }
.case b { color: var(--ink); }
.legend { display: inline; margin: 0; padding: 0; list-style: none; }
.legend li { display: inline-block; margin-left: .6rem; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px;
  border: 1px solid #0004; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
@media (max-width: 640px) {
  body { padding: 1rem .6rem 2rem; }
  section, nav { padding: .9rem .75rem; }
  th, td { padding: .3rem .5rem; }
  tbody th, tbody th.long { min-width: 0; max-width: 42vw; overflow-wrap: break-word; }
  .small > div { grid-template-columns: 1fr 1fr; }
}
@media print {
  body { max-width: none; padding: 0; background: #fff; font-size: 11px; }
  section, nav { border: 0; padding: 0; break-inside: auto; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 8.5px; }
  th, td { padding: .15rem .3rem; }
  figure, tr, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
