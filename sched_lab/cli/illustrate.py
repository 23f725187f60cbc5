"""`sched-lab illustrate`: the figures of 2301.10972 from a sweep's own images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sched_lab.cli.options import Picture, file_argument
from sched_lab.store.folder import safe_name
from sched_lab.trainers.schedules import ScheduleError, parse

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

    from sched_lab.trainers.spec import TrialSpec


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them, each in [low, high]; integers where `whole`."""

    name = "numbers"

    def __init__(self, low: float, high: float, *, whole: bool = False) -> None:
        self._low, self._high, self._read = low, high, int if whole else float

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._read(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(self._low <= number <= self._high for number in numbers):
            kind = "whole numbers" if self._read is int else "numbers"
            self.fail(
                f"takes {kind} from {self._low:g} to {self._high:g} with commas between them, got"
                f" {value!r}"
            )
        return numbers


_out_option = click.option(
    "--out",
    metavar="FILE",
    type=Picture(),
    help="PNG, SVG or PDF to write; default SWEEP-FIGURE.png here.",
)
_scales_type = _Numbers(1e-3, 1e3)
_seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise."
)


@click.group(short_help="What noise, schedules and b do to your own images, in pictures.")
def illustrate() -> None:
    """Draw what noise, schedules and the input scale b do to a sweep's own images; nothing is
    trained.

    \b
    Example:
      sched-lab illustrate noise sweeps/headline.yaml
      sched-lab illustrate schedules linear cosine@0.2,1,1
      sched-lab illustrate scale sweeps/headline.yaml --out scale.pdf
    """


@illustrate.command()
@file_argument
@_out_option
@click.option(
    "--size",
    "sizes",
    metavar="N,N,…",
    type=_Numbers(4, 1024, whole=True),
    help="Default: the sweep's.",
)
@click.option(
    "--gamma", "gammas", metavar="γ,γ,…", type=_Numbers(0, 1), default="0.7,0.3", show_default=True
)
@click.option(
    "--images",
    type=click.IntRange(1, 16),
    default=3,
    show_default=True,
    help="How many, from the first on.",
)
@_seed_option
def noise(
    file: Path,
    out: Path | None,
    sizes: tuple[int, ...] | None,
    gammas: tuple[float, ...],
    images: int,
    seed: int,
) -> None:
    """The same images of the sweep in FILE at each size, under the same noise: larger ones look
    less destroyed.

    \b
    Example:
      sched-lab illustrate noise sweeps/headline.yaml --size 8,32,128 --gamma 0.9,0.7,0.4
    """
    from sched_lab.illustrations import noise_by_size, sharp_dpi

    name, specs = _sweep(file)
    data, sizes = specs[0].data, sizes or tuple(sorted({spec.resolution for spec in specs}))
    try:
        ax = noise_by_size(data, sizes, gammas, count=images, seed=seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    about = f"{data.source} at {_list(sizes)} pixels, γ = {_list(gammas)}"
    _write(ax.figure, out or Path(f"{safe_name(name)}-noise.png"), about, sharp_dpi(max(sizes)))


@illustrate.command()
@click.argument("what", nargs=-1, required=True, metavar="FILE|SPEC…")
@_out_option
@click.option(
    "--b",
    "scales",
    metavar="B,B,…",
    type=_scales_type,
    help="Input scales of log-SNR; default 1, or all of a sweep's that has one schedule.",
)
def schedules(what: tuple[str, ...], out: Path | None, scales: tuple[float, ...] | None) -> None:
    """γ(t), log-SNR and its density for schedules: those of the sweeps in FILEs, or any written as
    SPEC.

    \b
    Example:
      sched-lab illustrate schedules sweeps/chen2023_schedules.yaml
      sched-lab illustrate schedules linear cosine@0.2,1,1 sigmoid@-3,3,0.9 --b 1,0.5
    """
    from sched_lab.illustrations import Curve, schedules_by_time

    notations: dict[str, set[float]] = {}
    name = ""
    for each in what:
        if Path(each).suffix in (".yaml", ".yml"):
            name, specs = _sweep(Path(each))
            for spec in specs:
                notations.setdefault(spec.schedule, set()).add(spec.b)
        else:
            notations.setdefault(each, {1.0})
    if scales is None:
        scales = tuple(sorted(*notations.values())) if len(notations) == 1 else (1.0,)
    try:
        curves = [
            Curve(notation if scales == (1.0,) else f"{notation}, b = {b:g}", parse(notation), b)
            for notation in notations
            for b in scales
        ]
        figure = schedules_by_time(curves)
    except ScheduleError as error:
        raise click.UsageError(str(error)) from error
    default = Path(f"{safe_name(name)}-schedules.png" if name else "schedules.png")
    _write(figure, out or default, f"{', '.join(notations)}, b = {_list(scales)}", 200)


@illustrate.command()
@file_argument
@_out_option
@click.option("--size", type=click.IntRange(4, 1024), help="Default: the largest of the sweep's.")
@click.option("--schedule", "notation", metavar="SPEC", help="Default: the sweep's first.")
@click.option("--b", "scales", metavar="B,B,…", type=_scales_type, help="Default: the sweep's.")
@click.option(
    "--t",
    "times",
    metavar="T,T,…",
    type=_Numbers(0, 1),
    default="0.1,0.3,0.5,0.7,0.9",
    show_default=True,
)
@click.option(
    "--normalize", type=click.Choice(["none", "input", "analytic"]), help="Default: the sweep's."
)
@click.option(
    "--images",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="How many, from the first on.",
)
@_seed_option
def scale(
    file: Path,
    out: Path | None,
    size: int | None,
    notation: str | None,
    scales: tuple[float, ...] | None,
    times: tuple[float, ...],
    normalize: Any,
    images: int,
    seed: int,
) -> None:
    """What a network of the sweep in FILE is given at each input scale b, from little noise to
    much.

    \b
    Example:
      sched-lab illustrate scale sweeps/headline.yaml --size 32 --b 0.1,0.5,1 --normalize none
    """
    from sched_lab.illustrations import scale_by_time, sharp_dpi

    name, specs = _sweep(file)
    size = size or max(spec.resolution for spec in specs)
    first = next((spec for spec in specs if spec.resolution == size), specs[0])
    scales = scales or tuple(sorted({spec.b for spec in specs}))
    normalize = normalize or first.train.normalize
    try:
        schedule = parse(notation or first.schedule).at_size(size)
        ax = scale_by_time(
            first.data, size, schedule, scales, times, normalize=normalize, count=images, seed=seed
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    about = (
        f"{first.data.source} at {size} pixels, {schedule}, b = {_list(scales)}, normalize"
        f" {normalize}"
    )
    _write(ax.figure, out or Path(f"{safe_name(name)}-scale.png"), about, sharp_dpi(size))


def _sweep(file: Path) -> tuple[str, Sequence[TrialSpec]]:
    """The name of the sweep in a file, and its cells in the order written."""
    from sched_lab.sweep.spec import read_sweep

    sweep = read_sweep(file)
    return sweep.spec.name, [cell.spec for cell in sweep.grid.cells]


def _write(figure: FigureBase, out: Path, about: str, dpi: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=dpi, bbox_inches="tight")  # type: ignore[attr-defined]  # a SubFigure is never made here
    click.echo(f"wrote {out}: {about}")


def _list(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
