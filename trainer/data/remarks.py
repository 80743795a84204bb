"""What a reader says about a data set: problems and notes."""

from __future__ import annotations

from trainer.errors import DataError


class Remarks:
    """Problems and notes of one reading.

    Args:
        problems: collects problems, so that a reader leaves out the entries concerned and goes on;
            None to raise the first one.
    """

    def __init__(self, problems: list[DataError] | None = None) -> None:
        self.problems = problems
        self.notes: list[str] = []

    def problem(self, found: str, expected: str = "", hint: str = "") -> None:
        """Raise or collect a ``DataError`` of these words."""
        self.add(DataError(found, expected, hint))

    def add(self, error: DataError) -> None:
        """Raise or collect an error."""
        if self.problems is None:
            raise error
        self.problems.append(error)

    def note(self, text: str) -> None:
        """Something that the user should know and that is no fault; it is kept once."""
        if text not in self.notes:
            self.notes.append(text)
