"""What noise schedules promise, against closed forms, published identities and the authors' own
numbers.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import laplace, logistic, norm

from sched_lab.trainers.schedules import (
    ALIASES,
    GAMMA_MIN,
    Array,
    Schedule,
    ScheduleError,
    check_visible,
    kinds,
    parameters,
    parse,
)
from tests.conftest import ROOT

GOLDEN = json.loads((ROOT / "tests" / "data" / "pix2seq_golden.json").read_text("utf-8"))
INNER = np.linspace(0.001, 0.999, 999)  # away from the ends, where log-SNR is infinite


def values(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda x: round(x, 4))


def notation(kind: str, *parameters: st.SearchStrategy[float]) -> st.SearchStrategy[str]:
    return st.tuples(*parameters).map(lambda given: f"{kind}@" + ",".join(map(repr, given)))


SCHEDULES = st.one_of(
    st.sampled_from([kind for kind in kinds() if kind != "shifted_cosine"]),
    notation("cosine", values(0, 0.5), values(0.6, 1), values(0.2, 3)),
    notation("sigmoid", values(-4, 0), values(0.5, 4), values(0.05, 2)),
    notation("log", values(0.1, 5), values(6, 200)).map(lambda name: f"{name},f"),
    notation("iddpm_cosine", values(0, 0.1)),
    notation("shifted_cosine", values(8, 256), values(8, 1024)),
    notation("flow", values(0.1, 10)),
    notation("edm", values(-3, 3), values(0.1, 3)),
    notation("laplace", values(-3, 3), values(0.1, 2)),
    notation("vp_sde", values(0, 1), values(10, 40)),
)


@pytest.mark.parametrize("name", GOLDEN["gamma"])
def test_gamma_is_what_the_authors_code_computes(name: str) -> None:
    assert_allclose(parse(name).gamma(GOLDEN["t"]), GOLDEN["gamma"][name], atol=2e-6, rtol=0)


@given(SCHEDULES)
@settings(deadline=None)
def test_gamma_falls_and_stays_within_its_bounds(name: str) -> None:
    gamma = parse(name).gamma(np.linspace(0, 1, 1001))
    assert (np.diff(gamma) <= 1e-12).all()
    assert gamma.max() <= 1
    assert gamma.min() >= GAMMA_MIN
    assert gamma[0] > 0.99
    assert gamma[-1] < 0.1


@given(SCHEDULES)
@settings(deadline=None)
def test_printing_a_schedule_and_parsing_it_again_changes_nothing(name: str) -> None:
    schedule = parse(name)
    assert parse(str(schedule)) == schedule
    assert str(parse(str(schedule))) == str(schedule)


@given(SCHEDULES, values(0.05, 8))
@settings(deadline=None)
def test_scale_b_moves_log_snr_by_twice_its_logarithm_and_snr_by_its_square(
    name: str, b: float
) -> None:
    schedule, t = parse(name), np.linspace(0.1, 0.9, 9)
    assert_allclose(
        schedule.log_snr(t, b), schedule.log_snr(t) + 2 * math.log(b), rtol=1e-12, atol=1e-12
    )
    assert_allclose(schedule.snr(t, b), schedule.snr(t) * b**2, rtol=1e-9)


@pytest.mark.parametrize(
    ("mapping", "same"),
    [
        ({"kind": "linear"}, "linear"),
        ({"kind": "cosine"}, "cosine"),
        ({"kind": "cosine", "tau": 2}, "cosine@0,1,2"),
        ({"kind": "sigmoid", "range": [0, 3], "tau": 0.5}, "sigmoid@0,3,0.5"),
        ({"kind": "sigmoid", "start": "-3"}, "sigmoid@-3.0,3,1.0"),
        ({"kind": "log", "reverse": True}, "log@1,100,t"),
        ({"kind": "simple_linear"}, "linear"),
    ],
)
def test_a_mapping_is_the_notation_with_its_parameters_named(
    mapping: dict[str, object], same: str
) -> None:
    assert parse(mapping) == parse(same)


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("simple_linear", "linear"),
        (" cosine@0.2, 1 ,1.0 ", "cosine@0.2,1,1"),
        ("sigmoid", "sigmoid@-3,3,1"),
        ("edm@-0,1.2", "edm@0,1.2"),
        ("shifted_cosine@32", "shifted_cosine@32"),
        ("shifted_cosine", "shifted_cosine@64"),
    ],
)
def test_every_spelling_of_a_schedule_prints_alike(spelling: str, canonical: str) -> None:
    assert str(parse(spelling)) == canonical


@pytest.mark.parametrize("kind", kinds())
@given(st.data())
@settings(deadline=None, max_examples=20)
def test_a_notation_that_stops_short_or_goes_on_is_refused_with_one_that_is_whole(
    kind: str, draw: st.DataObject
) -> None:
    takes = parameters(ALIASES.get(kind, kind))
    defaults = [str(default).lower() for default in takes.values() if default is not None]
    count = draw.draw(st.integers(0, len(takes) + 2))
    given = (defaults + ["64"] * 3)[:count]
    written = f"{kind}@{','.join(given)}"
    if given and len(defaults) <= count <= len(takes):
        assert parse(written) == parse({"kind": kind, **dict(zip(takes, given, strict=False))})
        return
    with pytest.raises(ScheduleError) as caught:
        parse(written)
    if not takes:
        assert str(caught.value).endswith("takes none")
        return
    whole = re.search(r"write all, as in (\S+), or name", str(caught.value))
    named = re.search(r"as in (\{[^}]*\})", str(caught.value))
    assert whole
    assert named
    assert parse(whole[1]) == parse(yaml.safe_load(named[1]))


def test_a_single_value_may_have_been_meant_as_any_parameter() -> None:
    with pytest.raises(ScheduleError) as caught:
        parse("sigmoid@0.9")
    ways = re.findall(r"\{.*?\}", str(caught.value))
    assert [yaml.safe_load(way) for way in ways] == [
        {"kind": "sigmoid", name: 0.9} for name in ("start", "end", "tau")
    ]
    with pytest.raises(ScheduleError, match=r"\(start, end, reverse: t or f\).*log@1,100,f,"):
        parse("log@1,100")


def test_bare_cosine_is_the_authors_and_not_the_one_with_default_parameters() -> None:
    assert not np.allclose(
        parse("cosine").gamma(INNER), parse("cosine@0,1,1").gamma(INNER), atol=1e-5, rtol=0
    )


def test_an_open_image_size_is_filled_in_once_and_never_replaced() -> None:
    assert str(parse("shifted_cosine").at_size(32)) == "shifted_cosine@64,32"
    assert str(parse("shifted_cosine@64,128").at_size(32)) == "shifted_cosine@64,128"
    with pytest.raises(ScheduleError, match="needs the image size"):
        parse("shifted_cosine").gamma(0.5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cosin", r"unknown schedule 'cosin'; did you mean 'cosine'\?; valid: cosine, edm, "),
        ({"kind": "cosine@", "tau": 2}, r"unknown schedule 'cosine@'; did you mean 'cosine'\?"),
        ("cosine@0.5,0.5,1", r"start and end must differ, got start = 0.5, end = 0.5"),
        ("sigmoid@-3,3,0", r"tau must be above 0, got tau = 0"),
        ("log@0,9,f", r"start and end must be above 0, got start = 0, end = 9"),
        ("cosine@-0.5,1,1", r"γ of cosine@-0.5,1,1 must fall from t = 0 to t = 1"),
        ("cosine@1,3,1", r"γ of cosine@1,3,1 must fall"),
        ("cosine@0,1.5,0.9", r"γ of cosine@0,1.5,0.9 is not a number everywhere"),
        ("linear@1", r"'linear@1' has 1 value; linear takes none"),
        ("cosine@0,1,1,4", r"has 4 values; cosine takes 3 \(start, end, tau\)"),
        ("sigmoid@", r"'sigmoid@' has 0 values; sigmoid takes 3 .* as in sigmoid@-3,3,1, or"),
        ("linear@", r"'linear@' has 0 values; linear takes none"),
        ("sigmoid@0.9", r"as in sigmoid@0.9,3,1, .* as in \{kind: sigmoid, start: 0.9\}"),
        ("sigmoid@a,3,1", r"sigmoid: start must be a number, got 'a'"),
        ("sigmoid@inf,3,1", r"sigmoid: start must be finite, got 'inf'"),
        ("log@1,9,maybe", r"log: reverse must be t or f, got 'maybe'"),
        (
            {"kind": "sigmoid", "taus": 2},
            r"sigmoid has no parameter 'taus'; did you mean 'tau'\?; valid: start, end, t",
        ),
        ({"kind": "sigmoid", "range": [0, 3], "end": 1}, r"give range or end, not both"),
        ({"kind": "sigmoid", "range": 3}, r"range must be \[start, end\], got 3"),
        ({"tau": 1}, r"needs 'kind'; valid: cosine, "),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_rule_it_breaks(
    spec: str | dict[str, object], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        parse(spec)


def test_t_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"t must lie in \[0, 1\], got 1.5"):
        parse("linear").gamma([0.5, 1.5])
    with pytest.raises(ScheduleError, match="got nan"):
        parse("linear").gamma(float("nan"))


def sech_density(log_snr: Array) -> Array:
    return 1 / (2 * np.pi * np.cosh(log_snr / 2))


CLOSED_FORMS: dict[str, Callable[[Array], Array]] = {
    "linear": logistic.pdf,
    "cosine@0,1,1": sech_density,
    "shifted_cosine@64,256": lambda log_snr: sech_density(log_snr - 2 * math.log(64 / 256)),
    "edm@-1.2,1.2": norm(2.4, 2.4).pdf,
    "edm@0.4,0.8": norm(-0.8, 1.6).pdf,
    "laplace@0,0.5": laplace(0, 0.5).pdf,
    "laplace@-1,1.5": laplace(-1, 1.5).pdf,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_density_over_log_snr_has_its_closed_form(name: str) -> None:
    schedule = parse(name)
    t = INNER[INNER != 0.5]  # the Laplace density has its corner there
    assert_allclose(schedule.density(t), CLOSED_FORMS[name](schedule.log_snr(t)), rtol=1e-5)


@pytest.mark.parametrize(
    "name", [*CLOSED_FORMS, "sigmoid@-3,3,0.9", "flow@3", "cosine@0.2,1,1", "vp_sde"]
)
def test_the_density_over_log_snr_integrates_to_one(name: str) -> None:
    schedule, t = parse(name), np.linspace(1e-4, 1 - 1e-4, 40_001)
    log_snr = schedule.log_snr(t)
    assert np.trapezoid(schedule.density(t)[::-1], log_snr[::-1]) == pytest.approx(
        1 - 2e-4, abs=2e-4
    )


def test_the_density_is_zero_where_log_snr_is_infinite_and_infinite_where_it_stands_still() -> None:
    flat_at_both_ends = parse("sigmoid@-3,3,0.04")
    assert flat_at_both_ends.density([0.1, 0.9]).tolist() == [0.0, math.inf]


@given(values(0.05, 20))
@settings(deadline=None)
def test_the_time_shift_of_sd3_is_the_scale_b_of_one_over_it(shift: float) -> None:
    assert_allclose(
        parse(f"flow@{shift}").log_snr(INNER), parse("flow").log_snr(INNER, b=1 / shift), atol=1e-6
    )


def test_the_shifted_cosine_is_the_cosine_at_scale_ref_over_size() -> None:
    assert_allclose(
        parse("shifted_cosine@64,256").log_snr(INNER),
        parse("cosine@0,1,1").log_snr(INNER, b=64 / 256),
        atol=1e-6,
    )


def test_scale_b_moves_the_mean_of_edm_by_minus_its_logarithm() -> None:
    b = 0.3
    assert_allclose(
        parse(f"edm@{-1.2 - math.log(b)!r},1.2").log_snr(INNER),
        parse("edm").log_snr(INNER, b),
        atol=1e-6,
    )


def test_scale_b_moves_the_mean_of_laplace_by_twice_its_logarithm() -> None:
    b = 0.3
    assert_allclose(
        parse(f"laplace@{2 * math.log(b)!r},0.5").log_snr(INNER),
        parse("laplace").log_snr(INNER, b),
        atol=1e-6,
    )


def test_another_package_adds_a_schedule_through_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "root_of_t.py").write_text(
        "def power(t, exponent=0.5):\n    return 1 - t**exponent\n", "utf-8"
    )
    info = tmp_path / "root_of_t-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: root-of-t\nVersion: 1.0\n", "utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[sched_lab.schedules]\npower = root_of_t:power\n", "utf-8"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from sched_lab.trainers.schedules import kinds, parse\n"
        "gamma = parse({'kind': 'power', 'exponent': 2}).gamma(0.5)\n"
        "print('power' in kinds(), parse('power'), gamma)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["True", "power@0.5", "0.75"]


@given(SCHEDULES, st.floats(-350, 300).map(lambda power: 10.0**power or 5e-324))
@settings(deadline=None, max_examples=300)
def test_what_passes_mixes_image_and_noise_in_float32_and_starts_from_noise(
    name: str, b: float
) -> None:
    schedule = str(parse(name).at_size(32))
    try:
        check_visible(schedule, b, sampled=True)
    except ScheduleError:
        return
    assert 9e-7 < b < 3.2e4
    t = np.random.default_rng(0).random(20_000)
    gamma = parse(schedule).gamma(t).astype(np.float32)
    signal, noise = np.float32(b) * np.sqrt(gamma), np.sqrt(1 - gamma)
    # At these t, adding one to the other in float32 leaves a grey level of either.
    assert ((signal > noise / 256) & (noise > signal / 256)).mean() > 0.005
    assert parse(schedule).snr(1.0, b) < 1


FLAWED = [
    "sigmoid@-3,3,1e-9",
    "sigmoid@-3,3,0.001",
    "cosine@0,1,1e9",
    "flow@1e9",
    "flow@1e-9",
    "edm@0,1e-9",
    "laplace@0,1e-6",
    "laplace@90,1",
    "vp_sde@0,1e-6",
    "vp_sde@0,0.1",
    "vp_sde@0,1e9",
    "shifted_cosine@64,1e9",
    "shifted_cosine@1e9,64",
]


@pytest.mark.parametrize("name", FLAWED)
def test_a_schedule_that_is_a_step_or_constant_is_refused_whatever_its_kind(name: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        check_visible(str(parse(name)), 1.0, sampled=True)
    schedule = parse(name)
    changed = dict(schedule.params).items() - parameters(schedule.kind).items()
    causes = [parameter for parameter, _ in changed if parameter != "size"]  # is the trial's
    first, *_ = caught.value.fields
    assert first in ([f"schedule.{parameter}" for parameter in causes] or ["schedule"])
    advice = f"go towards {first.removeprefix('schedule.')} = " if causes else "choose another"
    assert advice in str(caught.value)


@pytest.mark.parametrize("b", [1e300, 1e-300, 5e-324, 1e5, 1e-5])
def test_a_b_that_leaves_image_or_noise_alone_is_refused_with_those_that_do_not(b: float) -> None:
    with pytest.raises(ScheduleError, match=r"choose b from (\S+) to (\S+)$") as caught:
        check_visible("linear", b, sampled=False)
    size = "large" if b > 1 else "small"
    assert caught.value.rule.startswith(f"b is too {size} for this schedule: ")
    assert caught.value.field == "b"
    for end in str(caught.value).rpartition("from ")[2].split(" to "):
        check_visible("linear", float(end), sampled=False)


def test_a_schedule_is_a_value() -> None:
    assert parse("sigmoid@0,3,0.5") == Schedule(
        "sigmoid", (("start", 0.0), ("end", 3.0), ("tau", 0.5))
    )
    assert len({parse("linear"), parse("simple_linear"), parse({"kind": "linear"})}) == 1
