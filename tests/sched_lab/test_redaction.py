"""Secrets are replaced by stars in whatever is shown, and nothing else is."""

from __future__ import annotations

import pytest

from sched_lab.redaction import redacted
from tests.conftest import Command


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:sesame@host:5000/x", "http://user:***@host:5000/x"),
        ("postgresql+psycopg2://u:p@ss@host/db", "postgresql+psycopg2://u:***@host/db"),
        ("redis://:sesame@host", "redis://:***@host"),
        ("two: a://b:c@d and e://f:g@h.", "two: a://b:***@d and e://f:***@h."),
        ("postgresql://host/db?user=u&password=sesame&sslmode=require", None),
        ("http://host:5000/path/a:b@c", "http://host:5000/path/a:b@c"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
        ("see http://host:5000 or mail me@host", "see http://host:5000 or mail me@host"),
    ],
)
def test_a_password_in_an_address_is_starred_and_the_rest_stays(
    text: str, shown: str | None
) -> None:
    assert redacted(text) == (shown or "postgresql://host/db?user=u&password=***&sslmode=require")


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "DB_PASSWORD", "my_secret", "OPENAI_API_KEY", "AWS_ACCESS_KEY_ID"]
)
def test_values_of_secret_variables_are_starred(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "abcdefgh")
    assert redacted("got abcdefgh, and abcdefg") == "got ***, and abcdefg"


def test_a_secret_that_begins_another_leaves_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-rest")
    assert redacted("abcdefgh-rest") == "***"


def test_short_values_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "digits")
    monkeypatch.setenv("MY_COLOUR", "turquoise")
    assert redacted("digits are turquoise") == "digits are turquoise"


def test_no_error_of_the_command_line_shows_a_secret(
    sched_lab: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "sesame-open")
    for debug in ([], ["--debug"]):
        done = sched_lab("schedule", "sesame-open", *debug)
        assert done.returncode == 2
        assert "***" in done.stderr
        assert "sesame-open" not in done.stderr
