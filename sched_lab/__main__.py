"""`python -m sched_lab` is the command line."""

from sched_lab.cli import main

main()
