"""Documents of headings, text, tables and pictures, as Markdown and as one HTML file.

The HTML, of ``page.html.jinja``, needs nothing but itself: pictures are embedded, there
is no script, and wide tables scroll within their frame.
"""

import base64
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


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


def to_html(blocks: Sequence[Block]) -> str:
    """The document as one HTML file; the pictures must be there."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    parts = itertools.groupby(blocks, lambda block: type(block).__name__)
    return _template().render(
        title=title, parts=[(kind, list(same)) for kind, same in parts]
    )


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda path: base64.b64encode(
        path.read_bytes()
    ).decode()
    return environment.get_template("page.html.jinja")
