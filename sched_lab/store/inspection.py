"""What the store says of sweeps and trials, read from their folders alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from sched_lab import names
from sched_lab.store.folder import Store, read_json
from sched_lab.store.journal import read
from sched_lab.text import clock, flat_params, settings_text
from sched_lab.trainers.spec import TrialSpec


def cell_states(store: Store, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each cell with its state and reason; `heard` is how many seconds ago a trial without a result
    last wrote.
    """
    rows = []
    for cell in cells:
        row = {
            **cell,
            "state": names.MISSING,
            "reason": "",
            "failure": "",
            "scores": {},
            "heard": None,
        }
        if result := store.result(cell["key"]):
            row |= {name: result[name] for name in ("state", "reason", "failure", "scores")}
        else:
            events, _ = read(store.trial(cell["key"]) / names.JOURNAL_FILE)
            said = [event for event in events if "state" in event]
            if said:
                row |= {"state": said[-1]["state"], "reason": said[-1].get("reason", "")}
                if row["state"] == names.RUNNING and not store.busy(cell["key"]):
                    row["state"] = names.INTERRUPTED  # its process is gone
                row["heard"] = round(time.time() - events[-1]["time_ms"] / 1000, 1)
        rows.append(row)
    return rows


def trial_line(row: Mapping[str, Any]) -> str:
    """A cell's state in one line."""
    settings = settings_text(row["settings"])
    scores = " ".join(
        f"{name}={'missing' if v is None else f'{v:.4g}'}" for name, v in row["scores"].items()
    )
    heard = f"last heard of {clock(row['heard'])} ago" if row["heard"] is not None else ""
    stage = f"{row['stage']:<7}" if "stage" in row else ""
    return "  ".join(
        part
        for part in (
            row["key"],
            stage,
            f"{row['state']:<9}",
            settings,
            scores,
            row["reason"],
            heard,
        )
        if part
    )


def find(store: Store, key: str) -> list[str]:
    """The keys of trials that begin with `key`."""
    return sorted(found for found in store.trial_keys() if found.startswith(key))


def describe(store: Store, key: str) -> dict[str, Any]:
    """A trial's params, state, scores, seconds and folder."""
    row = cell_states(store, [{"key": key, "settings": {}}])[0]
    raw = read_json(store.trial(key) / names.SPEC_FILE)
    try:
        params = flat_params(TrialSpec.model_validate(raw)) if raw else {}
    except ValueError:  # of a plug-in or a file that is no longer there
        params = {"spec": json.dumps(raw)}
    result = store.result(key) or {}
    return {
        **{name: row[name] for name in ("key", "state", "reason", "failure", "scores")},
        **{name: result.get(name) for name in ("step", "loss", "environment")},
        "seconds": result.get("seconds", {}),
        "params": params,
        "folder": str(store.trial(key)),
    }
