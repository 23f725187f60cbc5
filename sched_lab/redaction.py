"""Keeps secrets out of what is printed, logged and stored: passwords in addresses, and values of
the environment.
"""

from __future__ import annotations

import io
import os
import re
from typing import TextIO

_SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(://[^/?#\s:@]*:)[^/?#\s]*@")
_IN_QUERY = re.compile(
    r"([?&](?:password|passwd|token|secret|api_?key)=)[^&#\s'\"]+", re.IGNORECASE
)
_SHORTEST = 8  # a shorter value is too likely to be a word of the text
_STARS = "***"


def redacted(text: str) -> str:
    """The text with stars for passwords in its addresses, and for values of variables whose names
    say they are secret.

    Values of fewer than 8 characters stay: they are words and numbers more often than secrets.
    """
    text = _IN_QUERY.sub(rf"\1{_STARS}", _IN_ADDRESS.sub(rf"\1{_STARS}@", text))
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _SHORTEST
    }
    for value in sorted(values, key=len, reverse=True):  # one secret may begin another
        text = text.replace(value, _STARS)
    return text


class Redacting(io.TextIOBase):
    """A text stream that passes on what is written to it line by line, without secrets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).splitlines(keepends=True) or [""]
        if self._line.endswith(("\n", "\r")):
            lines, self._line = [*lines, self._line], ""
        self._stream.write(redacted("".join(lines)))
        return len(text)

    def close(self) -> None:
        if not self.closed:
            self._stream.write(redacted(self._line))
            self._line = ""
        super().close()
