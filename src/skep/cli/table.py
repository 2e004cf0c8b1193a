"""Tables as Docker prints them, and the other forms of `--format`: a template, `table TEMPLATE`, `json`.

A cell is as wide as the widest of its column and three blanks, at least ten; the last column is not filled up.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    Row = Mapping[str, Any]

FORMAT = """Format output using a custom template:
'table':            Print output in table format with column headers (default)
'table TEMPLATE':   Print output in table format using the given Go template
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template.
Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"""

FORMAT_INSPECT = """Format output using a custom template:
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template.
Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"""


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """Cells -> text. A column ends where a line has no cell there (Go's tabwriter, minimum 10, padding 3)."""
    rows = [list(line) for line in lines]
    widths: list[list[int]] = [[0] * len(row) for row in rows]
    for column in range(max((len(row) for row in rows), default=0)):
        start = 0
        while start < len(rows):
            if len(rows[start]) <= column + 1:
                start += 1
                continue
            end = start
            while end < len(rows) and len(rows[end]) > column + 1:
                end += 1
            width = max(10, max(len(row[column]) for row in rows[start:end]) + 3)
            for n in range(start, end):
                widths[n][column] = width
            start = end
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, sizes, strict=True)) + "\n" for row, sizes in zip(rows, widths, strict=True)
    )


def labelled(row: Row, found: Mapping[str, Any]) -> Row:
    """With `.Label "key"` for templates: one of the labels of what the row shows."""
    return {**row, "Label": lambda key: (found.get("Labels") or {}).get(key, "")}


def labelled_headers(headers: Row) -> Row:
    """Over a column of `{{.Label "com.example.some-key"}}` stands `some key`."""
    return {**headers, "Label": lambda key: key.split(".")[-1].replace("-", " ").replace("_", " ")}


def render(columns: Sequence[tuple[str, str]], rows: Iterable[Row], form: str, headers: Row, *, no_header: bool = False) -> str:
    """`columns` are those of the plain table: (key, header). `headers` has the header of every key a template may name."""
    form = form.strip() if form.strip() in ("table", "json") else form
    if form in ("", "table"):
        lines = [] if no_header else [[header for _, header in columns]]
        lines += [[row[key] for key, _ in columns] for row in rows]
        return aligned(lines)
    from skep.cli.gotemplate import Headers, Template, to_json
    from skep.cli.gotemplate import Row as SortedRow

    def made(kind: type[Headers], row: Row) -> Headers:
        found = kind(sorted((key, value) for key, value in row.items() if not callable(value)))
        found.methods = {key: value for key, value in row.items() if callable(value)}
        return found

    rows = [made(SortedRow, row) for row in rows]
    if form == "json":
        return "".join(to_json(row) + "\n" for row in rows)
    tabular = form.startswith("table ")
    text = (form[6:] if tabular else form).replace("\\t", "\t").replace("\\n", "\n")
    template = Template(text)
    printed = [template.render(row) for row in rows]
    if not tabular:
        return "".join(line + "\n" for line in printed)
    if not no_header:
        printed.insert(0, template.render(made(Headers, headers)))
    return aligned(line.split("\t") for text in printed for line in text.split("\n"))
