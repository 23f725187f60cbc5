"""Who may see the dashboard of one's own machine, and what a first visit finds.

MLflow's server imports this by name, as its `authorization_function`. A visit with the token of the
printed address gets a cookie; programs may send it as the password of the user admin.
"""

from __future__ import annotations

import os
from hmac import compare_digest

from flask import Response, request
from werkzeug.datastructures import Authorization

from sched_lab.tracking.dashboard import TOKEN, USER
from sched_lab.tracking.pages import LIST

# Of a server that nobody asked for one: it runs commands as the user who started it.
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
# MLflow's pages remember in the browser which half of them was seen last, and that they have shown
# the assistant.
ENTRY = f"""<!doctype html><title>sched-lab</title><script>
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
history.replaceState(null, "", "/" + (location.hash || "{LIST}"));
location.reload();
</script>"""


def authorize() -> Authorization | Response:
    """The user of this request, or the answer that it gets instead."""
    port = request.host.rpartition(":")[2]  # cookies are shared by all ports of a host
    cookie, token = f"sched_lab_{port}", os.environ[TOKEN]
    login = request.authorization
    shown = request.args.get("token"), request.cookies.get(cookie), login and login.password
    if token and not any(_same(each or "", token) for each in shown):
        words = "Open the address that sched-lab dashboard printed: it holds a token.\n"
        asks = {"WWW-Authenticate": 'Basic realm="sched-lab"'}
        return Response(words, 401, asks, content_type="text/plain")
    if request.path.startswith(ASSISTANT):
        return Response("There is no assistant here.\n", 404, content_type="text/plain")
    if request.path == "/" and ("token" in request.args or cookie not in request.cookies):
        entered = Response(ENTRY)
        entered.set_cookie(cookie, token or "entered", httponly=True, samesite="Strict")
        return entered
    return Authorization("basic", {"username": USER, "password": ""})


def _same(given: str, token: str) -> bool:
    return compare_digest(given.encode(errors="replace"), token.encode())
