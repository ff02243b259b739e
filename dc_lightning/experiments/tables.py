"""Tables and figures of experiments, as text and as bytes."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.markdown import Markdown


@dataclass
class Matrix:
    """A table of text: what was not run stays blank."""

    title: str  # above it
    corner: str  # what the rows are
    cells: dict[tuple[str, str], str] = field(default_factory=dict)  # by row and column label
    columns: Sequence[str] = ()  # in this order; empty takes the order in which they come
    footnotes: dict[str, int] = field(default_factory=dict)  # their numbers; see `marked`
    remark: str = ""  # below it

    @property
    def notes(self) -> list[str]:
        """What stands below the table, line by line."""
        numbered = [f"[{number}] {note}" for note, number in self.footnotes.items()]
        return [*numbered, self.remark] if self.remark else numbered

    def marked(self, text: str, notes: Sequence[str]) -> str:
        """A text with the number of its footnote, which stands once below the table; as it is without notes."""
        number = self.footnotes.setdefault(", ".join(notes), len(self.footnotes) + 1) if notes else 0
        return f"{text} [{number}]" if number else text

    def column_names(self) -> list[str]:
        """In the order of the table."""
        return list(self.columns or dict.fromkeys(column for _, column in self.cells))

    def row_names(self) -> list[str]:
        """Likewise."""
        return list(dict.fromkeys(row for row, _ in self.cells))

    def markdown(self) -> str:
        """For the terminal, and for a README."""
        columns = self.column_names()
        head = f"| {self.corner} | {' | '.join(columns)} |"
        lines = [f"**{self.title}**", "", head, "|---" * (len(columns) + 1) + "|"]
        for row in self.row_names():
            lines.append(f"| {row} | {' | '.join(self.cells.get((row, column), '') for column in columns)} |")
        notes = ["", *("\\" + note for note in self.notes)] if self.notes else []
        return "\n".join([*lines, *notes]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Of a table without notes, for results.json."""
        cells = [[row, column, text] for (row, column), text in self.cells.items()]
        return {"title": self.title, "corner": self.corner, "cells": cells, "notes": []}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Matrix":
        """What `to_dict` gave."""
        return cls(content["title"], content["corner"], {(row, column): text for row, column, text in content["cells"]})


def merged(matrices: Iterable[Matrix]) -> list[Matrix]:
    """Those of one title as one, as runs of one experiment with other methods are; none where they contradict."""
    found: list[Matrix] = []
    for matrix in matrices:
        known = next((one for one in found if one.title == matrix.title and _agree(one, matrix)), None)
        if known is None:
            found.append(replace(matrix, cells=dict(matrix.cells)))
        else:
            known.cells |= matrix.cells
    return found


def _agree(first: Matrix, second: Matrix) -> bool:
    """Whether two tables have the same columns, and no cell that differs."""
    same_columns = set(first.column_names()) == set(second.column_names())
    return same_columns and all(second.cells.get(at, text) == text for at, text in first.cells.items())


def show(markdown: str) -> None:
    """Prints tables as wide as they are: figures are never cut."""
    width = max(Console().width, *(len(line) for line in markdown.splitlines()))
    Console(width=width).print(Markdown(markdown))


def as_png(figure: Any) -> bytes:
    """A matplotlib figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
