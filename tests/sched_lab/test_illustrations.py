"""Figures of noise, schedules and b show the user's own images, noised as in training."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sched_lab import illustrations
from sched_lab.illustrations import (
    Curve,
    examples,
    network_inputs,
    noise_by_size,
    scale_by_time,
    schedules_by_time,
)
from sched_lab.trainers.data.builtin import Digits, Photos
from sched_lab.trainers.data.user import Folder
from sched_lab.trainers.schedules import parse
from sched_lab.trainers.spec import Normalize
from tests.conftest import Command

SWEEP = """\
name: mine
data: digits
grid: {resolution: [8, 16], b: [0.5, 2.0], schedule: [linear]}
"""
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(SWEEP, "utf-8")
    return tmp_path


@pytest.mark.parametrize("b", [0.3, 2.5])
@pytest.mark.parametrize("how", ["none", "input", "analytic", "state"])
def test_images_are_noised_and_normalised_by_the_papers_formulas(b: float, how: Normalize) -> None:
    random = np.random.default_rng(5)
    x0, noise = random.uniform(-1, 1, (4, 3, 8, 8)), random.standard_normal((4, 3, 8, 8))
    gammas = (0.0, 0.05, 0.7, 1.0)
    for gamma, shown in zip(gammas, network_inputs(x0, noise, gammas, b, how), strict=True):
        x_t = math.sqrt(gamma) * b * x0 + math.sqrt(1 - gamma) * noise
        std = x_t.std(axis=(1, 2, 3), keepdims=True)
        analytic = math.sqrt((b**2 - 1) * gamma + 1)
        by = {"none": 1.0, "input": std, "state": std, "analytic": analytic}[how]
        np.testing.assert_allclose(shown, x_t / by, atol=1e-12)


def test_the_same_noise_leaves_more_of_a_larger_image() -> None:
    tiles = drawn(noise_by_size(Photos(), [8, 32, 128], (0.3,), count=1, seed=3))
    likeness = [
        np.corrcoef(averaged(clean).ravel(), averaged(noised).ravel())[0, 1]
        for clean, noised in zip(tiles[::2], tiles[1::2], strict=True)
    ]
    assert likeness[0] < 0.7 < likeness[1] < likeness[2]
    assert likeness[2] > 0.98


def averaged(image: np.ndarray) -> np.ndarray:
    """(H, W, C) in 8×8 blocks."""
    side = image.shape[0] // 8
    return image.reshape(8, side, 8, side, -1).mean(axis=(1, 3))


def drawn(ax: object) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.images]  # type: ignore[attr-defined]


def test_each_size_shows_the_same_images_and_each_level_the_same_noise() -> None:
    ax = noise_by_size(Digits(), [8, 16], (0.0, 0.0), count=2)
    tiles = drawn(ax)
    assert [tile.shape for tile in tiles] == [(8, 8, 3)] * 6 + [(16, 16, 3)] * 6
    for row in (tiles[:6], tiles[6:]):
        np.testing.assert_array_equal(row[2:4], row[4:6])
    for small, large in zip(tiles[:2], tiles[6:8], strict=True):
        assert np.corrcoef(small.ravel(), averaged(large).ravel())[0, 1] > 0.95
    assert [label.get_text() for label in ax.get_yticklabels()] == ["8×8", "16×16"]


def test_a_row_of_the_scale_figure_goes_from_image_to_noise_and_larger_b_keeps_more() -> None:
    tiles = drawn(
        scale_by_time(Digits(), 16, parse("linear"), [0.25, 4.0], (0.0, 0.5, 1.0), count=1)
    )
    clean = tiles[0].ravel()

    def likeness(tile: np.ndarray) -> float:
        return float(np.corrcoef(clean, tile.ravel())[0, 1])

    small, large = [likeness(tile) for tile in tiles[:3]], [likeness(tile) for tile in tiles[3:]]
    assert small[0] > 0.99
    assert small[0] > small[1] > abs(small[2])
    assert large[1] > small[1]


def test_figures_are_drawn_on_the_axes_and_figure_given() -> None:
    figure = Figure()
    ax, other = figure.subplots(1, 2)
    assert noise_by_size(Digits(), [8], ax=ax) is ax
    assert scale_by_time(Digits(), 8, parse("linear"), [1.0], ax=other) is other
    given = Figure()
    assert schedules_by_time([Curve("linear", parse("linear"))], given) is given


def test_no_label_is_cut_off() -> None:
    figures = [
        noise_by_size(Digits(), [8, 1024], (0.125,), count=1).figure,
        scale_by_time(Digits(), 8, parse("sigmoid@-3,3,0.9"), [0.0625, 1], count=1).figure,
        schedules_by_time(
            [
                Curve(f"sigmoid@-3,3,{tau}", parse(f"sigmoid@-3,3,{tau}"), 0.5)
                for tau in range(1, 25)
            ]
        ),
    ]
    for figure in figures:
        figure.savefig("/dev/null", format="png")  # lays it out
        inner, outer = figure.get_tightbbox(), figure.bbox_inches
        assert inner.x0 >= 0
        assert inner.y0 >= 0
        assert inner.x1 <= outer.width
        assert inner.y1 <= outer.height


@pytest.mark.parametrize("largest", [8, 32, 96, 128, 224, 1000])
def test_pixels_are_whole_dots_in_print(largest: int) -> None:
    dots = illustrations.sharp_dpi(largest) * illustrations.TILE
    assert round(dots) % largest == 0
    assert abs(dots - round(dots)) < 0.5
    assert dots >= 240


def test_only_the_images_shown_are_decoded(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"broken")
    source = Folder(path=str(tmp_path))
    assert examples(source, 8, 2).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"c\.png cannot be read"):
        examples(source, 8, 3)


def test_fewer_images_than_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="'photos' has 2 images, fewer than the 3 asked for"):
        examples(Photos(count=2), 8, 3)


@pytest.mark.parametrize("suffix", SIGNATURES)
@pytest.mark.parametrize("figure", ["noise", "schedules", "scale"])
def test_each_command_writes_the_picture_it_says(
    sched_lab: Command, folder: Path, figure: str, suffix: str
) -> None:
    done = sched_lab("illustrate", figure, "mine.yaml", "--out", f"it{suffix}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote it{suffix}: ")
    assert (folder / f"it{suffix}").read_bytes().startswith(SIGNATURES[suffix])
    assert {path.name for path in folder.iterdir()} == {"mine.yaml", f"it{suffix}"}


def test_what_is_left_out_comes_from_the_sweep(sched_lab: Command, folder: Path) -> None:
    said = [
        sched_lab("illustrate", name, "mine.yaml", cwd=folder).stdout
        for name in ("noise", "schedules", "scale")
    ]
    assert said == [
        "wrote mine-noise.png: digits at 8, 16 pixels, γ = 0.7, 0.3\n",
        "wrote mine-schedules.png: linear, b = 0.5, 2\n",
        "wrote mine-scale.png: digits at 16 pixels, linear, b = 0.5, 2, normalize input\n",
    ]


def test_schedules_are_drawn_from_notations_alone(sched_lab: Command, tmp_path: Path) -> None:
    done = sched_lab("illustrate", "schedules", "linear", "cosine@0.2,1,1", cwd=tmp_path)
    assert done.stdout == "wrote schedules.png: linear, cosine@0.2,1,1, b = 1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["noise", "mine.yaml", "--gamma", "1.5"],
            "takes numbers from 0 to 1 with commas between them, got '1.5'",
        ),
        (["noise", "mine.yaml", "--size", "8.5"], "takes whole numbers from 4 to 1024"),
        (["noise", "none.yaml"], "none.yaml"),
        (["scale", "mine.yaml", "--out", "it.jpg"], "must end in .png, .svg, .pdf, got 'it.jpg'"),
        (["schedules", "lineer"], "did you mean 'linear'"),
        (["schedules", "shifted_cosine"], "needs the image size"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    sched_lab: Command, folder: Path, arguments: list[str], message: str
) -> None:
    done = sched_lab("illustrate", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("figure", "loaded"), [("schedules", ""), ("noise", "torch"), ("scale", "torch")]
)
def test_pictures_of_images_load_torch_and_none_loads_more(
    folder: Path, figure: str, loaded: str
) -> None:
    code = (
        "import sys\n"
        "from sched_lab.cli.program import cli\n"
        f"cli(['illustrate', {figure!r}, 'mine.yaml'], standalone_mode=False)\n"
        "print(*[name for name in ('torch', 'mlflow', 'ray', 'pandas') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == loaded
