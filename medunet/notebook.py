"""How results appear: an HTML table in a notebook, the same table as text in a terminal."""

import html
from collections.abc import Sequence
from typing import TypeAlias

Table: TypeAlias = tuple[str, Sequence[tuple[object, ...]]]  # title, and rows, of which the first is the header
MAX_ROWS = 50  # rows that are shown; the rest is counted
MAX_TEXT = 80  # characters of a cell in text


class Shown:
    """Base of results that appear as a title and a table."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __repr__(self) -> str:
        title, rows = self._cells()
        cells = [[text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..." for text in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([title, *lines])

    def _repr_html_(self) -> str:
        title, (header, *rows) = self._cells()
        lines = [_row("th", header), *(_row("td", row) for row in rows)]
        return f"<p>{html.escape(title)}</p><table>{''.join(lines)}</table>"

    def _cells(self) -> tuple[str, list[list[str]]]:
        title, rows = self._table()
        more = f" (first {MAX_ROWS} of {len(rows) - 1} rows)" if len(rows) > MAX_ROWS + 1 else ""
        texts = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows[: MAX_ROWS + 1]]
        return title + more, texts


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
