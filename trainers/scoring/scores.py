"""The distance of samples from real images: Fréchet distance, KID, precision and recall."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sched_lab.trainers.caching import cached, digest, remembered
from sched_lab.trainers.cancellation import check
from sched_lab.trainers.data.prepare import content_key
from sched_lab.trainers.images import ImageSet, Pixels
from sched_lab.trainers.scoring.metrics import (
    KID_SUBSET_SIZE,
    METRICS,
    NEIGHBOURS,
    least_samples,
)
from sched_lab.trainers.scoring.torchvision_compat import import_torchvision
from sched_lab.trainers.spec import JACKKNIFE_GROUPS, SCIENCE_VERSION, DataSpec, Detector

Features = NDArray[np.float32]  # (N, d)
Matrix = NDArray[np.float64]

REFERENCE_IMAGES = 50_000  # the customary size of a reference; larger sources are thinned evenly
BATCH = 64
KID_SUBSETS, KID_SEED = 100, 0

_PARTS = ("features", "mean", "covariance", "root")


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the real images' features."""

    features: Features
    """(N, d)."""
    mean: Matrix
    """(d,)."""
    covariance: Matrix
    """(d, d), over N - 1."""
    root: Matrix
    """(d, d), the covariance's symmetric square root."""
    key: str = ""
    """What names images, size and detector in the cache."""


def score(
    features: Features, reference: Reference, detector: str, metrics: Sequence[str]
) -> dict[str, float]:
    """The metrics of samples by name: `fid`, or `fd_`, `kid_`, `precision_`, `recall_` + detector.

    `features` (N, d) are the samples', from that detector. The Fréchet distance is in squared units
    of the features, 0 at best. KID is an unbiased estimate, so it may fall below 0. Precision and
    recall lie in [0, 1]. Raises ValueError where there are too few samples, or a score is not
    finite.
    """
    kinds = {name: _kind(name, detector) for name in metrics}
    for name, kind in kinds.items():
        if kind not in METRICS:
            raise ValueError(
                f"no metric {name!r} on detector {detector!r}; valid: {', '.join(METRICS)}"
            )
        if min(len(features), len(reference.features)) < least_samples(kind):
            raise ValueError(
                f"{name} needs at least {least_samples(kind)} samples and as many real images, "
                f"got {len(features)} and {len(reference.features)}"
            )
    values: dict[str, float] = {}
    if "fd" in kinds.values():
        values["fd"] = frechet_distance(*statistics(features), reference)
    if "kid" in kinds.values():
        values["kid"] = kernel_distance(features, reference.features)
    if {"precision", "recall"} & set(kinds.values()):
        values["precision"], values["recall"] = precision_recall(features, reference.features)
    found = {name: values[kind] for name, kind in kinds.items()}
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"scores must be finite, got {found}: the features are too large")
    return found


def standard_errors(
    features: Features, reference: Reference, detector: str, metrics: Sequence[str]
) -> dict[str, float]:
    """Standard errors of the Fréchet distances among the metrics; none for fewer than 40 samples.

    They describe other samples of the same network, not other networks.
    """
    names = [name for name in metrics if _kind(name, detector) == "fd"]
    if not names or len(features) < 2 * JACKKNIFE_GROUPS:
        return {}
    return dict.fromkeys(names, jackknife(features, reference))


def _kind(metric: str, detector: str) -> str:
    return "fd" if metric == "fid" else metric.removesuffix(f"_{detector}")


def load_reference(
    data: DataSpec, size: int, detector: Detector, cache: Path, images: ImageSet, batch: int = BATCH
) -> Reference:
    """The reference of `images`, which are `data` prepared at `size`; computed once, kept in
    `cache`.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), REFERENCE_IMAGES)).astype(np.int64)

    def make(folder: Path) -> None:
        reference = refer(extract(images.pixels, detector, chosen, batch))
        for name in _PARTS:
            np.save(folder / f"{name}.npy", getattr(reference, name))

    key = digest(content_key(data, cache), size, detector.fingerprint, len(chosen), SCIENCE_VERSION)
    folder = cached(cache / "references" / key, make)
    parts = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _PARTS}
    return Reference(**parts, key=key)


def real_scores(
    reference: Reference, detector: str, metrics: Sequence[str], count: int, cache: Path
) -> dict[str, float]:
    """The metrics of `count` of the real images, half of them at most, against all others.

    Perfect samples would score so. The images are drawn by one seed; the result is kept in `cache`.
    Metrics for which there are too few images are absent.
    """
    count = min(count, len(reference.features) // 2)
    metrics = [name for name in metrics if count >= least_samples(_kind(name, detector))]
    if not metrics:
        return {}

    def compute() -> str:
        order = np.random.default_rng(0).permutation(len(reference.features))
        drawn, others = reference.features[order[:count]], reference.features[order[count:]]
        return json.dumps(score(drawn, refer(others), detector, metrics))

    key = digest(reference.key, count, metrics)
    values: dict[str, float] = json.loads(remembered(cache, key, compute, "baselines"))
    return values


def refer(features: Features) -> Reference:
    """The reference that real images with these features (N, d) make."""
    mean, covariance = statistics(features)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return Reference(features, mean, covariance, root)


def extract(
    images: Pixels, detector: Detector, chosen: NDArray[np.int64] | None = None, batch: int = BATCH
) -> Features:
    """Features (N, d) of images (N, C, H, W), or of those `chosen`, `batch` at a time.

    Raises ValueError where the detector gives others, or some that are not finite.
    """
    chosen = np.arange(len(images)) if chosen is None else chosen
    parts = []
    for start in range(0, len(chosen), batch):
        check()
        pixels = torch.from_numpy(images[chosen[start : start + batch]])
        parts.append(detector.features(pixels).cpu().numpy())
    features = np.concatenate(parts)
    if features.ndim != 2 or len(features) != len(chosen):
        raise ValueError(
            f"detector {detector.name!r} must give features (N, d), N = {len(chosen)}, it gave"
            f" {features.shape}"
        )
    if broken := np.count_nonzero(~np.isfinite(features).all(axis=1)):
        raise ValueError(
            f"detector {detector.name!r} gave features that are not finite for {broken} of"
            f" {len(chosen)} images"
        )
    return features


def statistics(features: Features) -> tuple[Matrix, Matrix]:
    """Mean (d,) and covariance (d, d) over N - 1, summed in float64 whatever the features are."""
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), 4096):
        check()
        centred = features[start : start + 4096] - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(features) - 1)


def frechet_distance(mean: Matrix, covariance: Matrix, reference: Reference) -> float:
    """|μ − μ_r|² + tr(Σ + Σ_r − 2(Σ_r Σ)^½) of two Gaussians (1706.08500, equation 6).

    With R the symmetric root of Σ_r, Σ_r Σ has the eigenvalues of R Σ R. This product is symmetric:
    its eigenvalues are real, and take half the time.
    """
    product = reference.root @ covariance @ reference.root
    root_trace = np.sqrt(np.linalg.eigvalsh(product).clip(min=0)).sum()
    shift = mean - reference.mean
    traces = np.trace(covariance) + np.trace(reference.covariance)
    # Rounding may take equal features below 0.
    return max(0.0, float(shift @ shift + traces - 2 * root_trace))


def jackknife(features: Features, reference: Reference, groups: int = JACKKNIFE_GROUPS) -> float:
    """The standard error of the Fréchet distance of features (N, d), by the grouped jackknife.

    A bootstrap would repeat samples, and the distance depends on how many distinct ones there are.
    Each remainder follows from the whole: without group g, n_g of N samples, the scatter is less by
    S_g + (N·n_g/(N − n_g))·(μ_g − μ)(μ_g − μ)ᵀ. With fewer than 10·d samples the error is up to a
    third too large, with fewer than d up to three times. It is the larger the nearer the samples
    are to the reference. Each group costs an eigendecomposition, two seconds for d = 2048 on a CPU.
    """
    count, (mean, covariance) = len(features), statistics(features)
    distances = []
    for group in (features[start::groups] for start in range(groups)):
        left, (group_mean, group_covariance) = count - len(group), statistics(group)
        shift = group_mean - mean
        lost = (len(group) - 1) * group_covariance + (count * len(group) / left) * np.outer(
            shift, shift
        )
        without = ((count - 1) * covariance - lost) / (left - 1)
        distances.append(frechet_distance(mean - shift * (len(group) / left), without, reference))
    return float(np.sqrt((groups - 1) * np.var(distances)))


def kernel_distance(features: Features, real: Features) -> float:
    """KID (1801.01401): the mean of MMD² over torch-fidelity's subsets of at most 1000.

    In features far off centre the kernel's values (x·y/d + 1)³ agree in all digits. With c the mean
    of the real ones, x = c + u and y = c + v, a = |c|²/d + 1 and s = (c·u + c·v + u·v)/d, the
    kernel is (a + s)³. Terms without both u and v leave the estimate as it is: a³ and
    3a²(c·u + c·v)/d are left out.
    """
    random = np.random.RandomState(KID_SEED)  # torch-fidelity's, for its subsets
    size, dimension = min(KID_SUBSET_SIZE, len(features), len(real)), features.shape[1]
    centre = real.mean(axis=0, dtype=np.float64)
    constant = centre @ centre / dimension + 1

    def kernel(u: Matrix, v: Matrix) -> Matrix:
        inner: Matrix = (u / dimension) @ v.T
        s = inner + (u @ centre)[:, None] / dimension
        s += v @ centre / dimension
        value: Matrix = s + 3 * constant
        value *= s
        value *= s
        inner *= 3 * constant**2
        value += inner
        return value

    def subset(of: Features) -> Matrix:
        chosen: Matrix = of[random.choice(len(of), size, replace=False)] - centre
        return chosen

    def within(u: Matrix) -> float:
        pairs = kernel(u, u)
        return float((pairs.sum() - np.trace(pairs)) / (size * (size - 1)))

    def estimate(u: Matrix, v: Matrix) -> float:
        check()
        return within(u) + within(v) - 2 * float(kernel(u, v).mean())

    return float(np.mean([estimate(subset(features), subset(real)) for _ in range(KID_SUBSETS)]))


def precision_recall(features: Features, real: Features) -> tuple[float, float]:
    """Improved precision and recall (1904.06991) by torch-fidelity, with 3 neighbours.

    It takes distances from inner products, which lose small ones between large features: these are
    centred, and in float64.
    """
    import_torchvision()
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    # In float32, as features are: differences are exact, and so stay ties.
    centre = real.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    metrics = prc_features_to_metric(
        *(torch.from_numpy(each - centre) for each in (features, real)),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=2000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(metrics[KEY_METRIC_PRECISION]), float(metrics[KEY_METRIC_RECALL])
