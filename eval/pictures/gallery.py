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
    cards = "\n".join(_card(entry, folder) for entry in entries)
    body = f"<p>{summary}</p>\n{settings_table}</header>\n<main>\n{cards}"
    atomic_write(path, html_page(title, _STYLE, body, "light dark"))


def _card(entry: Entry, folder: Path) -> str:
    name = escaped(entry.name)
    if entry.error is not None:
        return f'<article class="failed">\n<h2>{name}</h2>\n<p class="error">{escaped(entry.error)}</p>\n</article>'
    parts = [f"<article>\n<h2>{name} <small>{_count(len(entry.instances), 'instance')}</small></h2>"]
    sources = {"overlay": entry.overlay, "panel": entry.panel}
    pictures = [(kind, _link(source, folder)) for kind, source in sources.items() if source]
    if pictures:
        links = "\n".join(
            f'<a href="{link}"><img src="{link}" alt="{kind} of {name}" loading="lazy"></a>' for kind, link in pictures)
        parts.append(f'<div class="pictures">\n{links}\n</div>')
    if entry.instances:
        rows = "".join(_table_row(k, row) for k, row in enumerate(entry.instances))
        head = "".join(f"<th>{word}</th>" for word in ("#", "class", "score", "confidence", "peak (row, column)"))
        table = f"<table>\n<tr>{head}</tr>\n{rows}</table>"
        many = len(entry.instances) > 8
        parts.append(f"<details><summary>Table of instances</summary>\n{table}</details>" if many else table)
    return "\n".join(parts) + "\n</article>"


def _table_row(k: int, row: Mapping) -> str:
    swatch = "#{:02x}{:02x}{:02x}".format(*colour(k))
    return (f'<tr><td><span class="swatch" style="background:{swatch}"></span>{k + 1}</td>'
            f"<td>{escaped(row['class'])}</td><td>{row['score']:.3f}</td><td>{row['confidence']:.3f}</td>"
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
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
header p { margin: .25rem 0 .75rem; color: var(--soft); }
header table { margin-top: .5rem; }
h2 { margin: 0 0 .75rem; font-size: 1.05rem; overflow-wrap: anywhere; }
h2 small { font-weight: normal; color: var(--soft); margin-left: .5rem; }
article { margin: 1.25rem 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.failed { border-color: var(--bad); }
.error { margin: 0; color: var(--bad); overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: 2fr 3fr; gap: 1rem; align-items: start; }
img { display: block; max-width: 100%; max-height: 90vh; margin: 0 auto; border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
article table { margin-top: .75rem; }
th, td { padding: .2rem 1.1rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: normal; color: var(--soft); }
td:first-child { white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); }
article details { margin-top: .75rem; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px; }
@media (max-width: 800px) { .pictures { grid-template-columns: 1fr; } }
"""
