"""What a browser shows: the report as one file that works anywhere, and the runs on MLflow's pages.

Needs Chromium and playwright. Screenshots go to $SCHED_LAB_SCREENSHOTS, where that is set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from sched_lab.store.folder import Store
from sched_lab.tracking.client import connect
from sched_lab.tracking.pages import TRAINING
from tests.benchmarks import reporting
from tests.conftest import Command
from tests.sched_lab.test_dashboard import address, dashboard
from tests.servers import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

WIDE, PHONE = 1280, 375
MILLISECONDS = 60_000  # to wait for what a busy machine shows late
RUN = "8px b=0.5 linear seed=0"


@pytest.fixture(
    scope="module"
)  # playwright holds the thread's event loop: no other module is to find it there
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip("Chromium is not installed")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which Chromium refuses to root
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=sandbox)
        yield started
        started.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SCHED_LAB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def report(sched_lab: Command, small_lab: Path) -> dict[str, Any]:
    """What `sched-lab report --json` says of the small sweep."""
    done = sched_lab("report", "small", "--store", small_lab / "lab", "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def pages(small_lab: Path) -> Iterator[str]:
    """The address of the dashboard of the small sweep's store."""
    port = free_port()
    with dashboard(Store.at(small_lab / "lab"), port, "--no-password"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def visit(browser: Browser, address: str, width: int = WIDE, **options: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    try:
        page.goto(address)
        yield page
    finally:
        context.close()


@contextmanager
def read(
    browser: Browser, report: dict[str, Any], width: int = WIDE, **options: Any
) -> Iterator[Page]:
    """The page of the report, on which no script fails, no error is told and no other file is asked
    for.
    """
    address, wrong = Path(report["files"]["html"]).as_uri(), []
    with visit(browser, "about:blank", width, **options) as page:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda asked: wrong.append(asked.url) if asked.url != address else None)
        page.goto(address)
        yield page
    assert [each for each in wrong if not each.startswith(("data:", "blob:"))] == []


def draw_all(page: Page) -> None:
    """Scroll by every figure, since each is drawn when it comes near, and wait until it is."""
    for figure in page.locator(".figure.interactive .plot").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for(state="attached")
    page.evaluate("window.scrollTo(0, 0)")


def test_the_report_says_first_what_is_best_at_each_size(
    browser: Browser, report: dict[str, Any]
) -> None:
    with read(browser, report) as page:
        cards = [card.inner_text() for card in page.locator("#answer .card").all()]
        warnings = page.locator("header .warnings p")
        assert warnings.all_inner_texts() == report["warnings"]
        assert all(each.is_visible() for each in warnings.all())
    said = {row["resolution"]: f"b\u00a0=\u00a0{row['b']:g}" for row in report["best"]}
    said |= {row["resolution"]: f"no best: {row['why']}" for row in report["without_best"]}
    assert said.keys() == {8, 16}
    for (size, answer), card in zip(sorted(said.items()), cards, strict=True):
        assert f"{size}×{size}" in card
        assert answer in card


def test_every_figure_of_the_report_is_drawn_from_that_one_file(
    browser: Browser, report: dict[str, Any]
) -> None:
    with read(browser, report) as page:
        draw_all(page)
        marks = page.locator(".figure.interactive .plot").evaluate_all(
            "plots => plots.map(plot => plot.querySelectorAll('.trace, .hm, .axis-heading,"
            " canvas').length)"
        )
    assert len(marks) >= 3
    assert all(marks)


def test_a_click_on_a_header_sorts_its_table_and_another_turns_it_round(
    browser: Browser, report: dict[str, Any]
) -> None:
    with read(browser, report) as page:
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        tables = page.locator(
            "table.sortable:has(thead button:text-is('b')):has(tbody tr:nth-child(4))"
        )
        table = tables.first
        headers = table.locator("thead th").all_text_contents()
        column = headers.index("b")
        button = table.locator("thead th").nth(column).locator("button")

        def shown() -> list[float]:
            return [
                float(row.locator("td, th").nth(column).inner_text())
                for row in table.locator("tbody tr").all()
            ]

        before = shown()
        button.click()
        assert table.locator("th[aria-sort=ascending]").text_content() == "b"
        assert shown() == sorted(before)
        button.click()
        assert table.locator("th[aria-sort=descending]").text_content() == "b"
        assert shown() == sorted(before, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_the_report_fits_desk_and_phone_by_day_and_by_night(
    browser: Browser, report: dict[str, Any], screenshots: Path, width: int, scheme: Any
) -> None:
    with read(browser, report, width, color_scheme=scheme, has_touch=width == PHONE) as page:
        draw_all(page)
        page.wait_for_timeout(500)  # plotly ends its transitions
        page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red, green, blue = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0,"
            " 3).map(Number)"
        )
        assert (red + green + blue < 3 * 64) == (scheme == "dark")


def test_the_report_reads_without_scripts(
    browser: Browser, report: dict[str, Any], screenshots: Path
) -> None:
    with read(browser, report, java_script_enabled=False) as page:
        page.screenshot(path=screenshots / "report-without-scripts.png", full_page=True)
        assert page.locator("#answer .card").first.is_visible()
        assert page.locator(".figure .static svg").first.is_visible()


def test_the_report_prints(browser: Browser, report: dict[str, Any], screenshots: Path) -> None:
    with read(browser, report) as page:
        draw_all(page)
        page.pdf(path=screenshots / "report.pdf", format="A4")
    assert (screenshots / "report.pdf").read_bytes().count(b"/Type /Page\n") >= 2


@pytest.mark.parametrize("asked", [["small"], []])
def test_the_printed_address_opens_on_the_trials_the_best_first(
    browser: Browser, small_lab: Path, asked: list[str], screenshots: Path
) -> None:
    store = Store.at(small_lab / "lab")
    with (
        dashboard(store, free_port(), *asked),
        visit(browser, address(store)) as page,
    ):
        page.get_by_role("columnheader", name="fd_classifier").first.wait_for()
        page.get_by_role("link", name="8px ").first.wait_for()
        assert page.get_by_role("columnheader", name="b", exact=True).first.is_visible()
        page.screenshot(path=screenshots / f"mlflow-opened-{len(asked)}.png")
        assert page.get_by_placeholder("Ask a question").count() == 0  # of MLflow's assistant
        assert "token" not in page.url


def test_a_sweep_is_a_click_from_the_first_page(browser: Browser, pages: str) -> None:
    with visit(browser, pages) as page:
        page.get_by_role("cell", name="small").get_by_role("link").click()
        page.get_by_text("Run Name", exact=True).wait_for()
        page.get_by_role("link", name="small", exact=True).last.wait_for()


def test_a_sweeps_first_page_leads_to_its_trials_the_best_first(
    browser: Browser, pages: str, small_lab: Path, report: dict[str, Any], screenshots: Path
) -> None:
    with visit(
        browser, f"{pages}/#{path_of(small_lab, RUN).rpartition('/')[0]}?{TRAINING}"
    ) as page:
        with page.context.expect_page() as opened:
            page.get_by_role("link", name="16×16").click()
        trials = opened.value
        trials.get_by_role("link", name="16px").nth(1).wait_for()
        trials.screenshot(path=screenshots / "mlflow-best.png")
        trials.get_by_role("columnheader", name="fd_classifier").first.wait_for()
        runs = pd.read_csv(report["files"]["runs"]).query("resolution == 16")
        b = runs.loc[runs["fd_classifier"].idxmin(), "b"]
        assert (
            trials.get_by_role("link", name="px ").all_inner_texts()[0]
            == f"16px b={b:g} linear seed=0"
        )


def test_the_dashboard_finds_the_runs_by_name(
    browser: Browser, pages: str, small_lab: Path, screenshots: Path
) -> None:
    runs = path_of(small_lab, RUN).rpartition("/")[0]
    # then the trials stand beside the sweep's run, not beneath it
    by_name = "orderByKey=tags.%60mlflow.runName%60"
    with visit(browser, f"{pages}/#{runs}?{TRAINING}&{by_name}") as page:
        page.get_by_placeholder("metrics.rmse").fill("attributes.run_name LIKE '8px%'")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="16px").first.wait_for(state="detached")
        page.get_by_role("link", name=RUN).wait_for()
        page.screenshot(path=screenshots / "mlflow-runs.png")
        shown = page.get_by_role("link", name="linear seed=").all_inner_texts()
    assert sorted(shown) == [RUN, "8px b=1 linear seed=0"]


def test_a_thousand_runs_browse(browser: Browser, tmp_path: Path, screenshots: Path) -> None:
    store, port = reporting.fill(tmp_path, 1000, ended=False), free_port()
    experiment = connect(store.tracking_uri).get_experiment_by_name(reporting.NAME).experiment_id
    by_name = "orderByKey=tags.%60mlflow.runName%60&compareRunsMode="
    runs = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?{TRAINING}&{by_name}"
    with dashboard(store, port, "--no-password"):
        with visit(browser, f"{runs}TABLE") as page:
            page.get_by_role("link", name="8px ").first.wait_for()
            page.get_by_placeholder("metrics.rmse").fill("params.resolution='8' AND params.b='1.0'")
            page.keyboard.press("Enter")
            page.get_by_text("30 matching runs").wait_for()  # ten schedules, three seeds
        with visit(browser, f"{runs}CHART") as page:
            page.locator(".js-plotly-plot .main-svg").first.wait_for()
            page.screenshot(path=screenshots / "mlflow-thousand.png")


def test_a_run_shows_its_samples_with_a_slider_over_the_steps(
    browser: Browser, pages: str, small_lab: Path, screenshots: Path
) -> None:
    with visit(browser, f"{pages}/#{path_of(small_lab, RUN)}/model-metrics?{TRAINING}") as page:
        page.get_by_text("fd_classifier", exact=True).first.wait_for()
        steps = page.get_by_role("slider").last
        while not steps.is_visible():  # the charts below are there when they come near
            page.get_by_text("Add chart").last.scroll_into_view_if_needed()
            page.mouse.move(WIDE / 2, 600)
            page.mouse.wheel(0, 600)
            page.wait_for_timeout(200)
        steps.focus()
        for step in (10, 20):
            with page.expect_response(
                lambda answer, step=step: f"step%2B{step}%2B" in answer.url
            ) as answer:  # type: ignore[misc]
                page.keyboard.press("ArrowRight")
            assert answer.value.ok
        picture = page.locator(
            "img[src*='step%2B20%2B']"
        ).last  # below the run's settings, in a card that scrolls
        picture.scroll_into_view_if_needed()
        page.screenshot(path=screenshots / "mlflow-samples.png")
        assert seen(picture)


def test_a_runs_first_page_shows_its_last_samples_and_its_loss(
    browser: Browser, pages: str, small_lab: Path, screenshots: Path
) -> None:
    with visit(browser, f"{pages}/#{path_of(small_lab, RUN)}?{TRAINING}") as page:
        page.get_by_text("Show more").click()
        pictures = page.locator("img[src^='get-artifact']")
        pictures.last.scroll_into_view_if_needed()
        page.screenshot(path=screenshots / "mlflow-run.png")
        assert pictures.count() == 3  # real images, too
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            assert seen(picture)


def test_the_sweeps_run_tells_its_axes_and_links_to_its_report(
    browser: Browser, pages: str, small_lab: Path, report: dict[str, Any], screenshots: Path
) -> None:
    with visit(browser, f"{pages}/#{path_of(small_lab, 'small')}?{TRAINING}") as page:
        page.get_by_role("cell", name="resolution").wait_for()
        with page.context.expect_page() as opened:
            page.get_by_role("link", name="Report", exact=True).click()
        page.get_by_text("Show more").click()
        page.get_by_text("sched-lab report small").scroll_into_view_if_needed()
        page.screenshot(path=screenshots / "mlflow-sweep.png")
        assert page.get_by_role("cell", name="8, 16").is_visible()
        shown = opened.value.frame_locator("iframe.mlflow-html-iframe")
        shown.locator("#answer .card").first.wait_for()
        assert shown.locator("#answer .card").count() == 2
        figure = shown.locator(".figure.interactive .plot").first
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for(state="attached")  # its scripts run there
        opened.value.screenshot(path=screenshots / "mlflow-report.png")


def seen(picture: Locator) -> bool:
    """Whether a picture is loaded, and at least half of it is neither hidden nor cut off by what is
    about it.
    """
    return bool(
        picture.evaluate(
            """picture => picture.naturalWidth > 0 && new Promise(tell => new IntersectionObserver(
                ([found]) => tell(found.intersectionRatio >= 0.5)).observe(picture))"""
        )
    )


def path_of(folder: Path, run_name: str) -> str:
    """The path of a run's page."""
    client = connect(Store.at(folder / "lab").tracking_uri)
    experiment = client.get_experiment_by_name("small").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{run_name}'")
    return f"/experiments/{experiment}/runs/{run.info.run_id}"
