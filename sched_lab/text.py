"""Trials, settings and times as text that people and MLflow read."""

from __future__ import annotations

import json
from typing import Any

from sched_lab.sweep.grid import Trial
from sched_lab.sweep.settings import settings_text
from sched_lab.trainers.errors import counted as counted
from sched_lab.trainers.images import DataFacts
from sched_lab.trainers.spec import TrialSpec


def label(trial: Trial) -> str:
    """The settings in which a trial differs, or its size and schedule where it is alone."""
    spec = trial.spec
    return settings_text(
        trial.settings or {"resolution": spec.resolution, "schedule": spec.schedule, "b": spec.b}
    )


def no_longer_belong(former: int) -> str:
    """What is said of trials whose cells a sweep had, and has no more; empty for none."""
    belong = "belongs" if former == 1 else "belong"
    return f"{counted(former, 'earlier trial')} no longer {belong}" if former else ""


def facts_text(facts: DataFacts) -> str:
    """Which images a source gives, on one line."""
    told = [f"{counted(facts.images, 'image')} of {facts.source}"]
    if facts.classes:
        fewest, most = min(facts.classes.values()), max(facts.classes.values())
        each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        told.append(f"{len(facts.classes):,} class{'es' * (len(facts.classes) != 1)} of {each}")
    sizes = [f"{size[0]} x {size[1]}" for size in (facts.smallest, facts.largest) if size]
    if sizes:
        told.append(f"{' to '.join(dict.fromkeys(sizes))} pixels before resizing")
    left = {"broken": facts.broken, "hidden": facts.hidden, **facts.unknown}
    out = ", ".join(f"{count:,} {what}" for what, count in left.items() if count)
    return ", ".join(told) + (f"; left out: {out}" if out else "")


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def flat_params(spec: TrialSpec) -> dict[str, str]:
    """Every setting of a trial as MLflow params: dotted names, the schedule's own parameters under
    theirs.

    Text stands as it is, all else as JSON, so that a reader gets the types back.
    """
    schedule = spec.noise_schedule
    values = spec.model_dump(mode="json")
    network, data = values["train"].pop("network"), values["data"]
    options = values["score"]["detector"] if isinstance(values["score"]["detector"], dict) else {}
    flat: dict[str, Any] = {
        "resolution": spec.resolution,
        "schedule": spec.schedule,
        "kind": schedule.kind,
        **dict(schedule.params),
        "b": spec.b,
        "seed": spec.seed,
        **{f"data.{name}": value for name, value in data.items()},
        "train.network": network.pop("kind"),
        **{f"train.network.{name}": value for name, value in network.items()},
        **{
            f"{part}.{name}": value
            for part in ("train", "sample", "score")
            for name, value in values[part].items()
        },
        "score.detector": spec.score.detector.kind,
        **{f"score.detector.{name}": value for name, value in options.items() if name != "kind"},
        "score.metrics": ",".join(spec.score.metrics),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in flat.items()
    }


def meant(name: str) -> str:
    """The tail of an error message where a file is named instead of the sweep in it."""
    is_file = name.endswith((".yaml", ".yml"))
    return "; a sweep is named as in its file's `name`, not as the file" if is_file else ""
