"""The names under which trials stand in MLflow and on disk; every other module takes them from
here.
"""

from __future__ import annotations

from enum import StrEnum

from sched_lab.trainers.results import (
    CHECKPOINT_FILE,
    DETECTOR_ACCURACY,
    FACTS_FILE,
    JOURNAL_FILE,
    LOG_FILE,
    LOSS_OF_ZERO,
    REAL,
    REAL_FILE,
    RESULT_FILE,
    SAMPLES_FOLDER,
    SPEC_FILE,
    UNTRAINED,
)

__all__ = [
    "CHECKPOINT_FILE",
    "DETECTOR_ACCURACY",
    "FACTS_FILE",
    "JOURNAL_FILE",
    "LOG_FILE",
    "LOSS_OF_ZERO",
    "REAL",
    "REAL_FILE",
    "RESULT_FILE",
    "SAMPLES_FOLDER",
    "SPEC_FILE",
    "UNTRAINED",
]

# Tags of a run.
TRIAL_KEY = "sched_lab.trial_key"
SWEEP = "sched_lab.sweep"  # its name: of its runs and of its experiment
STATE = "sched_lab.state"
REASON = "sched_lab.reason"
STORE = "sched_lab.store"  # the store that writes the run: what its STORE_FILE holds
# The journal that was delivered to the run, and the byte up to which it was
DELIVERED = "sched_lab.delivered"
STAGE = "sched_lab.stage"  # one of Stage, where the sweep has stages
FAILURE = "sched_lab.failure"  # the kind of failure: a sched_lab.trainers.failures.FailureKind
ROLE = "sched_lab.role"  # `sweep` on the parent run, `trial` on its children
PARENT = "mlflow.parentRunId"
EXPERIMENT_KIND = "mlflow.experimentKind"  # of an experiment: what MLflow's pages show of it first
# "true" on a trial's run whose trial the sweep, as submitted last, no longer has
SUPERSEDED = "sched_lab.superseded"
DESCRIPTION = "sched_lab.description"  # on the parent: what the sweep's file says that it asks
NOTE = "mlflow.note.content"  # of a run and of an experiment: Markdown that MLflow's pages show
LOGGED_IMAGES = "mlflow.loggedImages"  # of a run that has a gallery
# of an experiment: + its key, a view of its runs that MLflow's pages offer
SHARED_VIEW = "mlflow.sharedViewState."
FOLDER = "sched_lab.folder"  # on the parent: where its file's relative paths begin
# On the parent: the metric that ranks the trials, such as fd_classifier
RANKED_BY = "sched_lab.ranked_by"

ROLE_SWEEP, ROLE_TRIAL = "sweep", "trial"


class Stage(StrEnum):
    """Values of STAGE: which of its sweep's stages a trial belongs to."""

    SCREEN = "screen"
    CONFIRM = "confirm"


# Metrics beside the scores, which carry their detector's name: fid, fd_<detector>, kid_<detector>,
# …; with the last evaluation a trial's baselines, REAL, UNTRAINED, LOSS_OF_ZERO and
# DETECTOR_ACCURACY, come beside
LOSS = "loss"
LOSS_BY_LOG_SNR = "loss_by_log_snr/"  # + the centre of the bin
JACKKNIFE = "jackknife/"  # + a score: its standard error within the run, at the last evaluation
SECONDS = "seconds/"  # + prepare, train, sample, score, baselines, total
IMAGES_PER_SECOND = "images_per_second"

STORE_FILE = "store.id"  # in the root folder of a store

# Artifacts of a trial's run, beside files of its folder.
ENVIRONMENT_FILE = "environment.json"
SCHEDULE_FILE = "schedule.png"
LOSS_FILE = "loss_by_log_snr.png"
LAST_SAMPLES_FILE = "samples.png"  # the last grid, enlarged
# The grids of samples, in MLflow's way: its pages show them with a slider over the steps
GALLERY_FOLDER = "images"
REPORT_FILE = "index.html"  # in the folder of a sweep's report
REPORT_FOLDER = "report"  # on the parent run: the report as last made
SWEEP_FILE = "sweep.yaml"  # on the parent run: the file as submitted
# on the parent run: {"cells": [{"key", "settings", "params"}, …]}, as last submitted
CELLS_FILE = "cells.json"


def higher_is_better(score: str) -> bool:
    """Whether a larger value of this score is better: so for precision and recall, and for no
    distance.
    """
    return score.startswith(("precision", "recall"))
