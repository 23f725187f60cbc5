"""Measures what the project promises of its speed, and prints it: `make bench`, or `python -m
tests.benchmarks NAME`.

Nothing here passes or fails; ratios are taken side by side in one run.
"""

from __future__ import annotations

import platform
import sys

from tests.benchmarks import (
    checkpointing,
    command_line,
    delivery,
    naive_tune,
    orchestration,
    reporting,
    training_loop,
)

BENCHMARKS = {
    "training_loop": training_loop.measure,
    "checkpointing": checkpointing.measure,
    "command_line": command_line.measure,
    "orchestration": orchestration.measure,
    "naive_tune": naive_tune.measure,
    "delivery": delivery.measure,
    "reporting": reporting.measure,
}


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    print(f"{platform.platform()}, Python {platform.python_version()}")
    for name in chosen:
        print(f"\n{name}")
        for what, value, limit in BENCHMARKS[name]():
            print(f"  {what:<72} {value:>10}   {limit}")


if __name__ == "__main__":
    main()
