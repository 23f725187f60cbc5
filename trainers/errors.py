"""Errors that carry the field they are about, so that no caller has to search a message for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FieldError(ValueError):
    """A value breaks a rule.

    `fields` names what the rule is about, the likeliest cause first: fields of the part that is
    checked, such as "path" or "width", or of the trial, such as "resolution". None at all means the
    part as a whole. `part` is the part of a trial that they lie in, such as "data".
    """

    part = ""

    def __init__(self, rule: str, *fields: str) -> None:
        super().__init__(rule, *fields)
        self.rule = rule
        self.fields = fields

    @property
    def field(self) -> str | None:
        """The field that most likely causes the error; None for the part as a whole."""
        return self.fields[0] if self.fields else None

    def __str__(self) -> str:
        return f"{self.part}.{self.field}: {self.rule}" if self.part and self.field else self.rule


class WeightsMissing(FieldError):
    """A detector's weights are not there and cannot be fetched."""

    part = "score"


def rule_of(error: Exception) -> str:
    """The rule that an error tells of, without the field's name."""
    return error.rule if isinstance(error, FieldError) else str(error)


def fields_of(error: Exception) -> tuple[str, ...]:
    """The fields that an error names; none for an error that is no FieldError."""
    return error.fields if isinstance(error, FieldError) else ()


def part_of(error: Exception) -> str:
    """The part of a trial that an error names; "" where it names none."""
    return error.part if isinstance(error, FieldError) else ""


def counted(number: int, what: str) -> str:
    """How many there are: 1 cell, 2 cells, 1,000 cells."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def in_part(part: str) -> Iterator[None]:
    """Have every ValueError raised within be a FieldError that names this part of the trial."""
    try:
        yield
    except FieldError as error:
        error.part = error.part or part
        raise
    except ValueError as error:
        told = FieldError(str(error))
        told.part = part
        raise told from error
