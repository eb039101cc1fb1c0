"""Documents of headings, text, tables and pictures, as Markdown and as one HTML file.

The HTML needs nothing but itself: pictures are embedded, there is no script, and wide
tables scroll within their frame.
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Heading(NamedTuple):
    """A title; level 1 comes first and once."""

    level: int
    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Lines as they are."""

    text: str


class Table(NamedTuple):
    """Rows of texts; every column but the first is of numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1  # columns, from the left, that are not numbers


class Picture(NamedTuple):
    """A PNG beside the document."""

    path: Path
    caption: str


Block = Heading | Text | Code | Table | Picture


# --- Markdown -------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as Markdown; pictures are linked by their names."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Code(text):
            return f"```\n{text.rstrip()}\n```"
        case Table():
            return aligned(block)
        case Picture(path, caption):
            return f"![{caption}]({path.name})"


def aligned(table: Table) -> str:
    """A table as aligned text, which is Markdown too."""
    cells = [[_escaped(c) for c in row] for row in (table.head, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        filled = (c.ljust(w) for c, w in zip(row, widths, strict=True))
        return f"| {' | '.join(filled)} |"

    rule = f"| {' | '.join('-' * w for w in widths)} |"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


# --- HTML -----------------------------------------------------------------------------

_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; color: #111;
  background: #fff; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #bbb; }
h1, h2, p, figcaption { overflow-wrap: anywhere; }
p { margin: .6rem 0; max-width: 48rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #333; vertical-align: bottom; white-space: normal; }
tr > :first-child { position: sticky; left: 0; background: #fff; }
tbody tr:nth-child(even), tbody tr:nth-child(even) > :first-child {
  background: #f6f6f6; }
.text { text-align: left; }
pre { overflow-x: auto; padding: .8rem; background: #f4f4f4; font-size: .82rem;
  line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; max-width: 40rem; height: auto; }
figcaption { font-size: .85rem; color: #444; margin-top: .3rem; }
@media (max-width: 40rem) {
  body { padding: .9rem; }
  th, td { padding: .3rem .5rem; }
  tr > :first-child { max-width: 9.5rem; white-space: normal; }
}
"""


def to_html(blocks: Sequence[Block]) -> str:
    """The document as one HTML file; the pictures must be there."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    parts, pictures = [], []
    for block in blocks:
        if isinstance(block, Picture):
            pictures.append(_figure(block))
            continue
        parts += _grid(pictures)
        pictures = []
        parts.append(_html(block))
    parts += _grid(pictures)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(parts)}\n</main>\n</body>\n</html>\n"
    )


def _grid(pictures: list[str]) -> list[str]:
    """Neighbouring pictures stand side by side where there is room."""
    if not pictures:
        return []
    return ['<div class="pictures">', *pictures, "</div>"]


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text.rstrip())}</pre>"
        case Table(head, rows, texts):
            lines = "\n".join(_row(row, "td", texts) for row in rows)
            return (
                '<div class="scroll" tabindex="0"><table>\n'
                f"<thead>{_row(head, 'th', texts)}</thead>\n"
                f"<tbody>\n{lines}\n</tbody>\n</table></div>"
            )
        case Picture():
            return _figure(block)


def _row(cells: Sequence[str], tag: str, texts: int) -> str:
    parts = []
    for i, cell in enumerate(cells):
        kind = ' class="text"' if i < texts else ""
        parts.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
