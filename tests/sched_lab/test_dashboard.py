"""The dashboard lets in who has the token of its address, and from other machines who has a
password; neither is shown to others.
"""

from __future__ import annotations

import base64
import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sched_lab.store.folder import Store
from tests.conftest import Command
from tests.servers import free_port

PASSWORD = "open-sesame-open"
SEARCH = "/ajax-api/2.0/mlflow/experiments/search"
ASSISTANT = "/ajax-api/3.0/mlflow/assistant/config"  # of a model that may run commands


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store whose database is there and holds no experiment of ours."""
    from mlflow import MlflowClient

    store = Store.at(tmp_path / "lab")
    store.root.mkdir()
    MlflowClient(store.tracking_uri).search_experiments()
    return store


def test_a_port_that_is_taken_is_said_and_exits_3(sched_lab: Command, store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = sched_lab("dashboard", "--store", store.root, "--port", port)
    assert done.returncode == 3
    assert "Address already in use" in done.stderr
    assert f"('127.0.0.1', {port})); choose another --port or --host" in done.stderr
    assert done.stdout == ""


def request(url: str, *, login: str = "", host: str = "", origin: str = "") -> int:
    """The status that a page, or with an origin a search like that of MLflow's pages, is answered
    with.
    """
    headers = {"Host": host} if host else {}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    if origin:
        headers |= {"Origin": origin, "Content-Type": "application/json"}
    asked = urllib.request.Request(url, b'{"max_results": 1}' if origin else None, headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@contextmanager
def dashboard(
    store: Store, port: int, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    command = [
        str(Path(sys.executable).with_name("sched-lab")),
        "dashboard",
        "--port",
        str(port),
        *arguments,
    ]
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SCHED_LAB", "MLFLOW"))}
    with (store.root / "said").open("w", encoding="utf-8") as said:
        server = subprocess.Popen(
            [*command, "--store", str(store.root)],
            env=kept | environment,
            stdout=said,
            stderr=said,
            encoding="utf-8",
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert server.poll() is None, (store.root / "said").read_text("utf-8")
            assert time.monotonic() < deadline, "the dashboard did not come up"
            try:
                request(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_other_machines_are_asked_for_a_password_and_no_page_of_another_site_may_ask(
    store: Store,
) -> None:
    port = free_port()
    with dashboard(store, port, "--host", "0.0.0.0", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD):
        here, admin = f"http://127.0.0.1:{port}", f"admin:{PASSWORD}"
        assert request(here) == 401
        assert request(here, login="admin:password1234") == 401
        assert request(here, login=admin) == 200
        named = f"{socket.gethostname()}:{port}"
        assert request(here + SEARCH, login=admin, host=named, origin=f"http://{named}") == 200
        assert (
            request(here + SEARCH, login=admin, host=named, origin="http://elsewhere.test") == 403
        )
        assert request(here, login=admin, host=f"elsewhere.test:{port}") == 403
    said = (store.root / "said").read_text("utf-8")
    assert "plain HTTP does not hide" in said
    assert PASSWORD not in said
    assert (store.root / "dashboard").stat().st_mode & 0o077 == 0


def address(store: Store) -> str:
    """The address that the dashboard printed; waits for it."""
    deadline = time.monotonic() + 90
    while not (found := re.search(r"dashboard: (\S+)", (store.root / "said").read_text("utf-8"))):
        assert time.monotonic() < deadline, "no address was printed"
        time.sleep(0.1)
    return found[1]


@pytest.mark.slow
def test_other_users_of_this_machine_are_kept_out_and_the_printed_address_lets_in(
    store: Store,
) -> None:
    import psutil

    port = free_port()
    with dashboard(store, port) as server:
        here = f"http://127.0.0.1:{port}"
        printed = address(store)
        assert printed.startswith(f"{here}/?token=")
        assert printed.endswith("#/experiments?workflowType=machine_learning")
        token = printed.partition("token=")[2].partition("#")[0]
        doors = ("/", SEARCH, "/get-artifact?path=a&run_uuid=b", "/graphql", "/signup", ASSISTANT)
        for door in doors:
            assert request(here + door) == 401, door
            assert request(here + door, login="admin:" + token[::-1]) == 401, door
            assert request(here + f"{door}{'&' if '?' in door else '?'}token=x") == 401, door
        assert request(here, login=f"admin:{token}") == 200
        assert request(here + ASSISTANT, login=f"admin:{token}") == 404
        cookies = http.cookiejar.CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
        with browser.open(printed, timeout=30) as page:
            assert page.status == 200
        asked = urllib.request.Request(
            here + SEARCH, b'{"max_results": 1}', {"Content-Type": "application/json"}
        )
        assert browser.open(asked, timeout=30).status == 200
        (cookie,) = cookies
        assert cookie.has_nonstandard_attr("HttpOnly")
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        addresses = {
            c.laddr.ip
            for p in family
            for c in p.net_connections()
            if c.status == psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}
        told = [argument for p in family for argument in p.cmdline()]
        assert not any(token in each for each in told)
        assert (store.root / "said").read_text("utf-8").count(token) == 1  # no log of visits
        # The server ends with the dashboard, whichever signal that hears.
        server.send_signal(signal.SIGHUP)
        assert server.wait(30) == 129
        assert psutil.wait_procs(family, timeout=5)[1] == []


@pytest.mark.slow
def test_with_no_password_this_machine_is_asked_for_none(store: Store) -> None:
    port = free_port()
    with dashboard(store, port, "--no-password") as server:
        assert "token" not in address(store)
        here = f"http://127.0.0.1:{port}"
        assert request(here) == 200  # it listens once that is printed
        assert request(here + SEARCH, origin=here) == 200
        assert request(here + ASSISTANT) == 404  # with it, anybody here could run commands
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0


def test_no_password_is_for_this_machine_alone(sched_lab: Command, store: Store) -> None:
    done = sched_lab("dashboard", "--store", store.root, "--host", "0.0.0.0", "--no-password")
    assert done.returncode == 2
    assert "--no-password is for this machine alone" in done.stderr


@pytest.mark.parametrize("password", ["", "short"])
def test_a_dashboard_for_others_without_a_good_password_says_what_to_set(
    store: Store, password: str
) -> None:
    command = [str(Path(sys.executable).with_name("sched-lab")), "dashboard", "--host", "0.0.0.0"]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "SCHED_LAB_STORE": str(store.root),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 3
    assert "set MLFLOW_AUTH_ADMIN_PASSWORD" in done.stderr


def test_a_sweep_that_is_not_there_is_a_wrong_argument(sched_lab: Command, store: Store) -> None:
    done = sched_lab("dashboard", "tiny", "--store", store.root, "--port", free_port())
    assert done.returncode == 2
    assert "no sweep 'tiny'" in done.stderr


def test_runs_on_a_server_are_pointed_to_without_the_password(sched_lab: Command) -> None:
    done = sched_lab("dashboard", "--tracking-uri", "http://user:sesame@127.0.0.1:9")
    assert done.returncode == 0
    assert "http://user:***@127.0.0.1:9/#/experiments?workflowType=machine_learning" in done.stdout
    assert "sesame" not in done.stdout + done.stderr
