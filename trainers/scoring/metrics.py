"""Which metrics there are, and from how many samples each means something."""

from __future__ import annotations

METRICS = ("fd", "kid", "precision", "recall")
NEIGHBOURS = 3  # of precision and recall
KID_SUBSET_SIZE = 1000


def least_samples(metric: str) -> int:
    """Samples, and real images, without which a metric can't be computed."""
    return NEIGHBOURS + 1 if metric in ("precision", "recall") else 2


def meaningful_samples(metric: str, dimension: int | None) -> int:
    """Samples from which a metric means something, for a detector of so many features.

    Fewer than d + 1 have a covariance without full rank: the Fréchet distance then measures their
    number as much as the images (1706.08500 and its code ask for more than d, better 10,000). KID
    does not depend on their number, and precision and recall not on d: for these it is the 1000 of
    one of KID's customary subsets (1801.01401), which tell a share to within 0.03.
    """
    if metric in ("fd", "fid"):
        return least_samples(metric) if dimension is None else dimension + 1
    return KID_SUBSET_SIZE
