"""Deals blows round after round: `python -m tests.chaos --rounds 50 --seed 0` runs rounds 0 to 49.

`--rounds 1 --seed 17` runs round 17 again. A seed fixes the kinds of blow, what each one picks, and
when it falls: after a share of the losses that were still to be reported, or so many seconds after
the submit's first word or the blow before. What the machine does in between is not repeated. Exits
with 1 when anything was violated.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter

from tests.chaos.blows import KINDS, plan
from tests.chaos.rounds import run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="deal only these blows"
    )
    given = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that all is cleaned up
    seeds = range(given.seed, given.seed + given.rounds)
    violated = run(seeds, given.kinds)
    counts = Counter(blow.kind for seed in seeds for blow in plan(seed, given.kinds))
    print(
        f"{given.rounds} rounds: {', '.join(f'{count} {kind}' for kind, count in counts.items())}"
    )
    print(f"violated: seeds {', '.join(map(str, violated))}" if violated else "nothing violated")
    sys.exit(1 if violated else 0)


if __name__ == "__main__":
    main()
