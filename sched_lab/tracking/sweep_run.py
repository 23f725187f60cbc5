"""The run that stands for a sweep in MLflow: what was submitted, and how it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from sched_lab import names
from sched_lab.store.records import CellRow
from sched_lab.tracking import pages
from sched_lab.tracking.client import MLFLOW_STATUS, storable_text
from sched_lab.tracking.runs import Experiment
from sched_lab.trainers.results import State


def create_sweep_run(experiment: Experiment) -> str:
    """The id of a new run for the sweep."""
    tags = {
        names.ROLE: names.ROLE_SWEEP,
        names.SWEEP: experiment.sweep,
        names.STORE: experiment.store_id,
    }
    run = experiment.client.create_run(experiment.id, tags=tags, run_name=experiment.sweep)
    return str(run.info.run_id)


def record_submission(
    experiment: Experiment,
    run_id: str,
    description: str,
    yaml_text: str,
    cells: Sequence[CellRow],
    ranked_by: str,
) -> None:
    """Record what is being submitted, and describe it on MLflow's pages."""
    client = experiment.client
    client.set_tag(run_id, names.RANKED_BY, ranked_by)
    client.set_tag(run_id, names.FOLDER, storable_text(os.getcwd()))
    about = [pages.links(experiment.id, run_id, cells), description]
    note = storable_text(pages.sweep_note(about, cells, experiment.store, experiment.sweep))
    client.set_tag(run_id, names.DESCRIPTION, storable_text(description))
    client.set_tag(run_id, names.NOTE, note)
    client.set_experiment_tag(experiment.id, names.NOTE, note)
    for tag, view in pages.views(cells, ranked_by, time.time_ns() // 10**6).items():
        client.set_experiment_tag(experiment.id, tag, view)
    client.log_text(run_id, yaml_text, names.SWEEP_FILE)
    client.log_dict(run_id, {"cells": [cell.as_json() for cell in cells]}, names.CELLS_FILE)
    client.update_run(run_id, "RUNNING")


def record_sweep_end(experiment: Experiment, run_id: str, state: State) -> None:
    """Record how the sweep ended."""
    experiment.client.set_tag(run_id, names.STATE, str(state))
    experiment.client.set_terminated(run_id, MLFLOW_STATUS[state])
