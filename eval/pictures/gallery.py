"""An HTML page of a run's pictures, which opens from disk."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from prm.files import atomic_write

from .figures import called, colour
from .page import escaped, html_page


@dataclass
class Entry:
    """One picture of the gallery: what was found in it, or why it failed."""

    name: str
    panel: str | os.PathLike | None = None
    overlay: str | os.PathLike | None = None
    instances: Sequence[Mapping] = field(default_factory=tuple)
    error: str | None = None


def instance_rows(segmentation, class_names: Sequence[str]) -> list[dict]:
    """The gallery's table of one picture: a dict an instance with class, score, confidence and peak (row, col)."""
    return [{"class": called(i.label, class_names), "score": float(i.score), "confidence": float(i.confidence),
             "peak": tuple(float(n) for n in i.peak)} for i in segmentation.instances]


def gallery(entries: Sequence[Entry], path: str | os.PathLike, title: str, settings: Mapping) -> None:
    """Write a page that shows every picture's overlay, panel and instances, and which pictures failed.

    path: the page, usually `index.html`; it links to the entries' PNGs by paths relative to it, and to nothing else.
    settings: name -> value, shown in a table, so that the page says how it was made.
    Raises InputError when the file cannot be written.
    """
    folder = Path(path).parent
    failed = sum(entry.error is not None for entry in entries)
    total = sum(len(entry.instances) for entry in entries)
    summary = f"{_count(len(entries), 'picture')}, {_count(total, 'instance')}"
    summary += f", {failed} failed" if failed else ""
    rows = "".join(f"<tr><th>{escaped(key)}</th><td>{escaped(value)}</td></tr>\n" for key, value in settings.items())
    settings_table = f"<details><summary>Settings</summary>\n<table>\n{rows}</table></details>\n" if rows else ""
    cards = "\n".join(_card(k, entry, folder) for k, entry in enumerate(entries))
    classes = sorted({row["class"] for entry in entries for row in entry.instances})
    body = f"<p>{summary}</p>\n{settings_table}{_controls(classes)}</header>\n<main>\n{cards}"
    atomic_write(path, html_page(title, _STYLE, body, "light dark", _SCRIPT))


def _controls(classes: Sequence[str]) -> str:
    """What filters and sorts; hidden where scripts do not run, and where nothing was found."""
    if not classes:
        return ""
    options = "".join(f'<option value="{escaped(name)}">{escaped(name)}</option>' for name in classes)
    orders = {"number": "as given", "best": "highest score", "count": "most instances", "name": "name"}
    sorts = "".join(f'<option value="{key}">{words}</option>' for key, words in orders.items())
    return (f'<form id="controls" hidden>\n<label>class <select id="class"><option value="">all</option>{options}'
            '</select></label>\n<label>score from <input id="least" type="number" step="0.05" value=""></label>\n'
            f'<label>order <select id="order">{sorts}</select></label>\n<output id="shown"></output>\n</form>\n')


def _card(number: int, entry: Entry, folder: Path) -> str:
    name = escaped(entry.name)
    best = max((row["score"] for row in entry.instances), default="")
    data = f'data-number="{number}" data-best="{best}" data-count="{len(entry.instances)}"'
    if entry.error is not None:
        error = f'<p class="error">{escaped(entry.error)}</p>'
        return f'<article class="failed" {data}>\n<h2>{name}</h2>\n{error}\n</article>'
    parts = [f"<article {data}>\n<h2>{name} <small>{_count(len(entry.instances), 'instance')}</small></h2>"]
    if entry.overlay:
        parts.append(_picture("overlay", entry.overlay, name, folder))
    if entry.instances:
        rows = "".join(_table_row(k, row) for k, row in enumerate(entry.instances))
        head = "".join(f"<th>{word}</th>" for word in ("#", "class", "score", "confidence", "peak (row, column)"))
        table = f"<table>\n<tr>{head}</tr>\n{rows}</table>"
        parts.append(f"<details><summary>Instances</summary>\n{table}</details>" if len(entry.instances) > 4 else table)
    if entry.panel:
        panel = _picture("panel", entry.panel, name, folder)
        parts.append(f"<details><summary>How it came about</summary>\n{panel}</details>" if entry.overlay else panel)
    return "\n".join(parts) + "\n</article>"


def _picture(kind: str, source: str | os.PathLike, name: str, folder: Path) -> str:
    link = _link(source, folder)
    return f'<a href="{link}"><img src="{link}" alt="{kind} of {name}" loading="lazy"></a>'


def _table_row(k: int, row: Mapping) -> str:
    swatch = "#{:02x}{:02x}{:02x}".format(*colour(k))
    what = escaped(row["class"])
    return (f'<tr data-class="{what}" data-score="{row["score"]}">'
            f'<td><span class="swatch" style="background:{swatch}"></span>{k + 1}</td>'
            f"<td>{what}</td><td>{row['score']:.3f}</td><td>{row['confidence']:.3f}</td>"
            f"<td>{row['peak'][0]:.0f}, {row['peak'][1]:.0f}</td></tr>\n")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _link(source: str | os.PathLike, folder: Path) -> str:
    """A relative, percent-encoded link: every byte a file name can hold arrives."""
    return quote(os.fsencode(Path(os.path.relpath(source, folder)).as_posix()))


_STYLE = """
:root { --ink: #1c1c1f; --soft: #66666e; --page: #f5f5f4; --card: #ffffff; --line: #dededc; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececee; --soft: #a0a0a8; --page: #151517; --card: #202023; --line: #38383d; --bad: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 1500px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
header p { margin: .25rem 0 .75rem; color: var(--soft); }
header table { margin-top: .5rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; margin: .75rem 0; align-items: center; color: var(--soft); }
form[hidden] { display: none; }
select, input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .15rem .4rem; max-width: 14rem; }
input { width: 5.5rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 1rem;
  align-items: start; }
h2 { margin: 0 0 .6rem; font-size: 1rem; overflow-wrap: anywhere; }
h2 small { font-weight: normal; color: var(--soft); margin-left: .5rem; }
article { padding: .8rem .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
article[hidden], tr[hidden] { display: none; }
.failed { border-color: var(--bad); }
.error { margin: 0; color: var(--bad); overflow-wrap: anywhere; }
img { display: block; max-width: 100%; max-height: 70vh; margin: 0 auto; border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
article table { margin-top: .6rem; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: normal; color: var(--soft); }
td:first-child { white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); }
article details { margin-top: .6rem; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px; }
dialog { padding: 0; border: 0; background: none; max-width: 98vw; max-height: 98vh; }
dialog img { max-width: 98vw; max-height: 96vh; }
dialog::backdrop { background: rgb(0 0 0 / .8); }
"""

_SCRIPT = """
const form = document.getElementById("controls"), main = document.querySelector("main");
const large = document.body.appendChild(document.createElement("dialog"));
large.onclick = () => large.close();
main.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  large.replaceChildren(Object.assign(new Image(), {src: link.href, alt: link.firstChild.alt}));
  large.showModal();
});
if (form) {
  const [wanted, least, order, shown] = ["class", "least", "order", "shown"].map(id => document.getElementById(id));
  const cards = [...main.children], title = card => card.querySelector("h2").textContent;
  const by = {
    number: (a, b) => a.dataset.number - b.dataset.number,
    best: (a, b) => (b.dataset.best || -Infinity) - (a.dataset.best || -Infinity),
    count: (a, b) => b.dataset.count - a.dataset.count,
    name: (a, b) => title(a).localeCompare(title(b)),
  };
  const update = () => {
    let pictures = 0, instances = 0;
    const everything = !wanted.value && least.value === "";
    for (const card of cards) {
      const rows = [...card.querySelectorAll("tr[data-class]")];
      for (const row of rows)
        row.hidden = (wanted.value && row.dataset.class !== wanted.value) ||
          (least.value !== "" && row.dataset.score < +least.value);
      const left = rows.filter(row => !row.hidden).length;
      card.hidden = !everything && !left;
      pictures += !card.hidden;
      instances += left;
    }
    shown.textContent = everything ? "" : `${pictures} of ${cards.length} pictures, ${instances} instances`;
    main.append(...[...cards].sort((a, b) => by[order.value](a, b) || by.number(a, b)));
  };
  form.oninput = update;
  form.onsubmit = event => event.preventDefault();
  form.hidden = false;
}
"""
