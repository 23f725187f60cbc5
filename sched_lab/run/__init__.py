"""Runs what is missing of a sweep: plan, queue, executors, workers, progress."""
