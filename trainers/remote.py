"""Whether a remote host answers, found out before a library tries for minutes."""

from __future__ import annotations

import urllib.error
import urllib.request


def reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether the server behind `url` gives any answer, an error included, within `seconds`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False
