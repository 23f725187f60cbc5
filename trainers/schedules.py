"""Noise schedules: γ(t), SNR, log-SNR and the density over log-SNR, with the authors' notation read
and printed.

A schedule is γ(t) for t in [0, 1], falling from (about) 1 to (about) 0. The state is x_t = √γ·b·x0
+ √(1−γ)·ε, so SNR = b²γ/(1−γ). Everything here is NumPy in float64: training draws t and looks γ up
on the host, so no schedule depends on a device. A new kind is one function of t and its parameters,
and one line in `KINDS`. Another package adds one through the entry points ``sched_lab.schedules``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sched_lab.trainers.errors import FieldError
from sched_lab.trainers.plugins import lookup, nearest, registered_names

Array = NDArray[np.float64]
Parameter = float | bool | None
VISIBLE = 2 * math.log(255)
"""Image and noise both show in 8 bits where log-SNR lies within ± this: 255 to 1 in amplitude."""
LEAST_SHARE = 0.01  # of t at which both must show
_POINTS = 1024  # of t at which that is looked at
GAMMA_MIN = 1e-9  # the authors' clip: γ stays off zero, where log-SNR and 1/√γ would be infinite


class ScheduleError(FieldError):
    """A schedule that cannot be: unknown kind or parameter, impossible value, or γ that does not
    fall.

    Its fields are the keys of a schedule's mapping: "kind", "range" or parameters. Of a trial they
    are "b", "schedule" and keys of its mapping, as "schedule.tau".
    """


def _require(holds: bool, rule: str, **values: Parameter) -> None:
    if not holds:
        given = ", ".join(f"{name} = {_number(value)}" for name, value in values.items())
        raise ScheduleError(f"{rule}, got {given}", *values)


def linear(t: Array) -> Array:
    """γ = 1 − t (2301.10972, section 2.1)."""
    return 1.0 - t


def _between(f: Callable[[Array | float], Array], u: Array, start: float, end: float) -> Array:
    """The affine map that puts γ(0) = 1 and γ(1) = 0 for any falling kernel f on [start, end]."""
    return (f(end) - f(u)) / (f(end) - f(start))


def cosine(t: Array, start: float = 0.0, end: float = 1.0, tau: float = 1.0) -> Array:
    """γ from the kernel cos(uπ/2)^(2·tau), u from start to end (2301.10972, Algorithm 1)."""
    _require(tau > 0, "tau must be above 0", tau=tau)
    _require(start != end, "start and end must differ", start=start, end=end)
    return _between(
        lambda u: np.cos(np.multiply(u, np.pi / 2)) ** (2 * tau),
        t * (end - start) + start,
        start,
        end,
    )


def cosine_authors(t: Array) -> Array:
    """γ = cos²(((t + 2e-4)/(1 + 2.5e-4))·π/2): bare `cosine` in the authors' code, their default
    for sampling.
    """
    return np.cos((t + 2e-4) / (1 + 2.5e-4) * np.pi / 2) ** 2


def sigmoid(t: Array, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Array:
    """γ from the kernel σ(u/tau), u from start to end (2301.10972, Algorithm 1)."""
    _require(tau > 0, "tau must be above 0", tau=tau)
    _require(start != end, "start and end must differ", start=start, end=end)
    return _between(
        lambda u: 0.5 * (1 + np.tanh(np.divide(u, 2 * tau))), t * (end - start) + start, start, end
    )


def log(t: Array, start: float = 1.0, end: float = 100.0, reverse: bool = False) -> Array:
    """γ from the kernel log(u), u from start to end, or back with `reverse` (the authors' code,
    `log@`).
    """
    _require(start > 0 and end > 0, "start and end must be above 0", start=start, end=end)
    _require(start != end, "start and end must differ", start=start, end=end)
    if reverse:
        start, end = end, start
    return _between(np.log, t * (end - start) + start, start, end)


def iddpm_cosine(t: Array, s: float = 0.008) -> Array:
    """γ = f(t)/f(0), f = cos²((t + s)/(1 + s)·π/2) (improved DDPM, 2102.09672, equation 17)."""
    _require(s >= 0, "s must be 0 or above", s=s)

    def f(u: Array | float) -> Array:
        return np.asarray(np.cos(np.add(u, s) / (1 + s) * np.pi / 2) ** 2)

    return f(t) / f(0.0)


def _from_log_snr(log_snr: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * log_snr))


def shifted_cosine(t: Array, ref: float = 64.0, size: float | None = None) -> Array:
    """λ = −2·log tan(πt/2) + 2·log(ref/size) (simple diffusion, 2301.11093): `size` is the image
    size of the trial.
    """
    if size is None:
        raise ScheduleError(
            "shifted_cosine needs the image size, as in shifted_cosine@64,256", "size"
        )
    _require(ref > 0 and size > 0, "ref and size must be above 0", ref=ref, size=size)
    with np.errstate(divide="ignore"):
        return _from_log_snr(-2 * np.log(np.tan(np.pi / 2 * t)) + 2 * math.log(ref / size))


def flow(t: Array, shift: float = 1.0) -> Array:
    """γ = (1−t')²/((1−t')² + t'²), t' = αt/(1 + (α−1)t), α = shift (rectified flow; SD3,
    2403.03206, equation 23).
    """
    _require(shift > 0, "shift must be above 0", shift=shift)
    t = shift * t / (1 + (shift - 1) * t)
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


def edm(t: Array, mean: float = -1.2, std: float = 1.2) -> Array:
    """γ = 1/(1 + σ²), log σ ~ N(mean, std²) with t its quantile (EDM, 2206.00364, table 1)."""
    from scipy.special import ndtri

    _require(std > 0, "std must be above 0", std=std)
    return _from_log_snr(-2 * (mean + std * ndtri(t)))


def laplace(t: Array, mean: float = 0.0, scale: float = 0.5) -> Array:
    """λ ~ Laplace(mean, scale), 1 − t its quantile (2407.03297)."""
    _require(scale > 0, "scale must be above 0", scale=scale)
    with np.errstate(divide="ignore"):
        return _from_log_snr(mean + scale * np.sign(t - 0.5) * np.log1p(-2 * np.abs(t - 0.5)))


def vp_sde(t: Array, beta_min: float = 0.1, beta_max: float = 20.0) -> Array:
    """γ = exp(−(β_min·t + ½(β_max − β_min)·t²)) (score SDE, 2011.13456, the variance-preserving
    SDE).
    """
    _require(
        0 <= beta_min < beta_max,
        "0 <= beta_min < beta_max must hold",
        beta_min=beta_min,
        beta_max=beta_max,
    )
    return np.exp(-(beta_min * t + 0.5 * (beta_max - beta_min) * t**2))


# "name@" is the spelling with parameters, where the bare name means another schedule.
KINDS: dict[str, Callable[..., Array]] = {
    "linear": linear,
    "cosine": cosine_authors,
    "cosine@": cosine,
    "sigmoid": sigmoid,
    "log": log,
    "iddpm_cosine": iddpm_cosine,
    "shifted_cosine": shifted_cosine,
    "flow": flow,
    "edm": edm,
    "laplace": laplace,
    "vp_sde": vp_sde,
}
ALIASES = {"simple_linear": "linear"}


@dataclass(frozen=True)
class Schedule:
    """A kind and the values of all its parameters, in the order of its function's signature."""

    kind: str
    params: tuple[tuple[str, Parameter], ...] = ()

    def gamma(self, t: ArrayLike) -> Array:
        """γ(t) in [1e-9, 1], float64, in the shape of t; t in [0, 1]."""
        t = np.asarray(t, dtype=np.float64)
        if not ((t >= 0) & (t <= 1)).all():
            raise ScheduleError(f"t must lie in [0, 1], got {t[~((t >= 0) & (t <= 1))].flat[0]:g}")
        return np.clip(self._unclipped(t), GAMMA_MIN, 1.0)

    def _unclipped(self, t: Array) -> Array:
        return _function(self.kind, bool(self.params))(t, **dict(self.params))

    def log_snr(self, t: ArrayLike, b: float = 1.0) -> Array:
        """log(b²γ/(1−γ)): +inf where γ = 1."""
        return log_snr(self.gamma(t), b)

    def snr(self, t: ArrayLike, b: float = 1.0) -> Array:
        """b²γ/(1−γ): +inf where γ = 1."""
        return np.asarray(np.exp(self.log_snr(t, b)))

    def density(self, t: ArrayLike) -> Array:
        """The density that uniform t puts on log-SNR, at log_snr(t): −dt/dλ. It is the same for
        every b, which moves λ.

        Central differences of λ; zero where λ is infinite, infinite where γ is flat.
        """
        t, h = np.asarray(t, dtype=np.float64), 1e-6
        after, before = np.minimum(t + h, 1.0), np.maximum(t - h, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            density = (after - before) / (self.log_snr(before) - self.log_snr(after))
        return np.where(np.isnan(density), 0.0, density)  # ∞ − ∞: λ is infinite on both sides

    def at_size(self, resolution: int) -> Schedule:
        """The same schedule with this image size, where its kind reads one and it is open."""
        return Schedule(
            self.kind,
            tuple(
                (n, float(resolution) if (n, v) == ("size", None) else v) for n, v in self.params
            ),
        )

    def __str__(self) -> str:
        values = [_number(value) for _, value in self.params if value is not None]
        return self.kind + ("@" + ",".join(values) if values else "")


def log_snr(gamma: ArrayLike, b: float = 1.0) -> Array:
    """log(b²γ/(1−γ)) of γ in (0, 1]: +inf where γ = 1."""
    gamma = np.asarray(gamma, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(gamma) - np.log1p(-gamma) + 2 * math.log(b))


def _log_snrs(notation: str) -> tuple[Array, float]:
    """log-SNR of b = 1 in float32, at 1024 points of t and at t = 1."""
    t = np.append((np.arange(_POINTS) + 0.5) / _POINTS, 1.0)
    with np.errstate(all="ignore"):
        log_snrs = log_snr(parse(notation).gamma(t).astype(np.float32))
    return log_snrs[:-1], float(log_snrs[-1])


@lru_cache(maxsize=4096)
def visible_share(notation: str, b: float) -> float:
    """The share of t at which image and noise both show, neither over 255 times the other."""
    shifted = np.add(_log_snrs(notation)[0], 2 * math.log(b))
    return float((np.abs(shifted) <= VISIBLE).mean())


@lru_cache(maxsize=4096)
def check_visible(notation: str, b: float, *, sampled: bool, least: float = LEAST_SHARE) -> None:
    """Raise ScheduleError about "b" or "schedule" where no image can be learned, or `sampled`,
    along a schedule at input scale b.

    Where a parameter is the cause, it stands before, as "schedule.tau". Image and noise must both
    show at a share `least` of t.

    Nearly all of t must not be pure image or pure noise to 8 bits, nor all at one SNR. Sampling
    starts from noise alone, so at t = 1 noise must outweigh the image. γ is what float32 has of it:
    1e-9, 1, or between with 1 − γ above 6e-8. So a trial's b lies between 9e-7 and 3.2e4, and all
    that is computed of it is far within float32.
    """
    if error := _invisible(notation, b, sampled, least):
        rule, fields = error
        if fields[0] == "schedule":
            schedule, causes = parse(notation), _causes(notation, b, sampled, least)
            defaults = parameters(schedule.kind)
            nearer = " and ".join(f"{name} = {_number(defaults[name])}" for name in causes)
            rule += f": go towards {nearer}" if causes else ": choose another schedule"
            ends = ["range"] if {"start", "end"} & set(causes) else []
            fields = [*(f"schedule.{name}" for name in [*causes, *ends]), *fields]
        raise ScheduleError(rule, *fields)


def _invisible(
    notation: str, b: float, sampled: bool, least: float
) -> tuple[str, list[str]] | None:
    """The rule that `check_visible` finds broken, and its fields."""
    log_snrs, end = _log_snrs(notation)
    margin = math.ceil(least * _POINTS)
    first, last = log_snrs[margin], log_snrs[-margin - 1]
    if last > first - math.log(2) and np.isfinite(first):
        rule = (
            f"SNR along {notation} falls by less than a factor of 2 over {1 - 2 * least:.0%} of t"
        )
        return f"{rule}, and must fall from image to noise gradually", ["schedule"]
    if (share := visible_share(notation, b)) < least:
        seen = (
            f"image and noise both show, neither over 255 times the other, at {share:.1%} of t"
            f" along {notation}; it should be {least:.0%} or more"
        )
        if visible_share(notation, 1.0) >= least:
            size = "large" if b > 1 else "small"
            low = math.exp(-(VISIBLE + first) / 2)
            high = math.exp((VISIBLE - last) / 2)
            advice = f"choose b from {low:.2g} to {high:.2g}"
            return f"b is too {size} for this schedule: {seen}: {advice}", ["b", "schedule"]
        return f"{seen}: γ must fall from 1 to 0 gradually", ["schedule"]
    if sampled and end + 2 * math.log(b) >= 0:
        rule = (
            f"sampling starts from noise alone, but SNR at t = 1 is"
            f" {math.exp(end + 2 * math.log(b)):.3g} along {notation} with b = {b:g}, and must be"
            " below 1"
        )
        if end < 0:
            return f"{rule}: choose b below {math.exp(-end / 2):.2g}", ["b", "schedule"]
        return rule, ["schedule", "b"]
    return None


def _causes(notation: str, b: float, sampled: bool, least: float) -> list[str]:
    """The parameters each of whose defaults alone would mend a schedule; else all that are set."""
    schedule = parse(notation)
    defaults = parameters(schedule.kind)
    changed = [name for name, value in schedule.params if defaults[name] not in (value, None)]

    def mends(name: str) -> bool:
        try:
            other = parse({"kind": schedule.kind, **dict(schedule.params), name: defaults[name]})
            return _invisible(str(other), b, sampled, least) is None
        except ScheduleError:
            return False

    return [name for name in changed if mends(name)] or changed


@cache
def kinds() -> tuple[str, ...]:
    """The names a schedule can have, as they are written."""
    return tuple(
        sorted({name.rstrip("@") for name in registered_names("schedule", KINDS)} | set(ALIASES))
    )


@cache
def parameters(name: str) -> dict[str, Parameter]:
    """The parameters a kind reads, in order, with their defaults."""
    signature = inspect.signature(_function(name, with_parameters=True))
    return {p.name: p.default for p in list(signature.parameters.values())[1:]}


@cache
def all_parameters() -> frozenset[str]:
    """Every parameter that some kind reads."""
    return frozenset(p for name in kinds() for p in parameters(ALIASES.get(name, name)))


def parse(spec: str | Mapping[str, object]) -> Schedule:
    """The schedule that a notation (``cosine@0.2,1,1``) or a mapping (``{kind: sigmoid, tau:
    0.9}``) stands for.

    A mapping may give start and end together as ``range: [start, end]``. The result is canonical:
    defaults filled in, aliases resolved. Raises ScheduleError for an unknown kind or parameter, an
    impossible value, or γ that does not fall.
    """
    if isinstance(spec, str):
        return _parse_notation(spec)
    given = {str(key): value for key, value in spec.items()}
    if "kind" not in given:
        raise ScheduleError(
            f"a schedule written as a mapping needs 'kind'; valid: {', '.join(kinds())}", "kind"
        )
    kind = str(given.pop("kind"))
    kind = ALIASES.get(kind, kind)
    if "range" in given:
        pair = given.pop("range")
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ScheduleError(f"range must be [start, end], got {pair!r}", "range")
        if clash := {"start", "end"} & set(given):
            rule = f"give range or {' and '.join(sorted(clash))}, not both"
            raise ScheduleError(rule, "range", *sorted(clash))
        given |= {"start": pair[0], "end": pair[1]}
        try:
            return _build(kind, given)
        except ScheduleError as error:
            at = ["range" if field in ("start", "end") else field for field in error.fields]
            raise ScheduleError(error.rule, *at) from None
    if not given:
        return _parse_notation(kind)
    return _build(kind, given)


@lru_cache(maxsize=4096)
def _parse_notation(notation: str) -> Schedule:
    kind, at, rest = notation.strip().partition("@")
    kind = ALIASES.get(kind, kind)
    values = [value.strip() for value in rest.split(",")] if rest.strip() else []
    _function(kind, with_parameters=bool(at))
    if not at:
        return _checked(Schedule(kind)) if kind + "@" in KINDS else _build(kind, {})
    takes = parameters(kind)
    given = dict(zip(takes, values, strict=False))
    # A parameter without a default of its own, such as a size, is the trial's to fill in.
    left_out = [
        name for name, default in takes.items() if name not in given and default is not None
    ]
    if not given or len(values) > len(takes) or left_out:
        raise ScheduleError(f"{notation!r} has {_values(len(values))}; {_full(kind, given)}")
    return _build(kind, given)


def _values(count: int) -> str:
    return f"{count} value{'s' * (count != 1)}"


def _full(kind: str, given: dict[str, str]) -> str:
    """What a kind takes in its notation, and how to write it: whole, or with names."""
    takes = parameters(kind)
    if not takes:
        return f"{kind} takes none"
    whole = {name: _number(default) for name, default in takes.items() if default is not None}
    truths = {name for name, default in takes.items() if isinstance(default, bool)}
    told = (f"{name}: t or f" if name in truths else name for name in takes)
    ways = [given or whole]
    if len(given) == 1:  # which may have been meant as any
        (value,) = given.values()
        ways += [{name: value} for name in list(takes)[1:] if name not in truths]
    named = (f"kind: {kind}" + "".join(f", {n}: {v}" for n, v in way.items()) for way in ways)
    return (
        f"{kind} takes {len(takes)} ({', '.join(told)}): write all, as in"
        f" {kind}@{','.join((whole | given).values())}, or name those you set, as in"
        f" {' or '.join(f'{{{way}}}' for way in named)}"
    )


def _build(kind: str, given: Mapping[str, object]) -> Schedule:
    defaults = parameters(kind)
    for name in given:
        if name not in defaults:
            raise ScheduleError(f"{kind} has no parameter {name!r}{nearest(name, defaults)}", name)
    values = {
        n: _read(kind, n, given[n], default) if n in given else default
        for n, default in defaults.items()
    }
    return _checked(Schedule(kind, tuple(values.items())))


def _read(kind: str, name: str, value: object, default: Parameter) -> Parameter:
    if isinstance(default, bool):
        truth = {"t": True, "true": True, "f": False, "false": False}.get(str(value).lower())
        if truth is None:
            raise ScheduleError(f"{kind}: {name} must be t or f, got {value!r}", name)
        return truth
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]  # anything else raises TypeError, caught below
    except (TypeError, ValueError):
        raise ScheduleError(f"{kind}: {name} must be a number, got {value!r}", name) from None
    if not math.isfinite(number):
        raise ScheduleError(f"{kind}: {name} must be finite, got {value!r}", name)
    return number + 0.0  # −0.0 and 0.0 are one value


@lru_cache(maxsize=4096)
def _checked(schedule: Schedule) -> Schedule:
    """The schedule itself. Raises ScheduleError unless γ falls; an open size counts as 64."""
    with np.errstate(all="ignore"):
        gamma = schedule.at_size(64)._unclipped(
            np.linspace(0, 1, 513)
        )  # the clip would hide γ that leaves [0, 1]
    if not np.isfinite(gamma).all():
        raise ScheduleError(f"γ of {schedule} is not a number everywhere on [0, 1]")
    if (np.diff(gamma) > 1e-12).any() or gamma[0] <= gamma[-1]:
        raise ScheduleError(f"γ of {schedule} must fall from t = 0 to t = 1")
    return schedule


def _function(kind: str, with_parameters: bool = False) -> Callable[..., Array]:
    """The function of a canonical kind, which may differ where the kind has parameters."""
    if with_parameters and kind + "@" in KINDS:
        return KINDS[kind + "@"]
    if kind not in kinds():
        raise ScheduleError(f"unknown schedule {kind!r}{nearest(kind, kinds())}", "kind")
    function: Callable[..., Array] = lookup("schedule", KINDS, kind)
    return function


def _number(value: Parameter) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return repr(value).removesuffix(".0")
