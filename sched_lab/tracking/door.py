"""Who may see the dashboard of one's own machine: whoever has the token of its printed address.

MLflow's server imports this by name, as its `authorization_function`. A visit with the token gets a
cookie; programs may send it as the password of the user admin.
"""

from __future__ import annotations

import os
from hmac import compare_digest

from flask import Response, redirect, request
from werkzeug.datastructures import Authorization

from sched_lab.tracking.dashboard import TOKEN, USER


def authorize() -> Authorization | Response:
    """The user of this request, or the answer that it gets instead."""
    port = request.host.rpartition(":")[2]  # cookies are shared by all ports of a host
    cookie = f"sched_lab_{port}"
    if _is_token(request.args.get("token", "")):
        entered = redirect(request.path)
        entered.set_cookie(cookie, os.environ[TOKEN], httponly=True, samesite="Strict")
        return entered  # type: ignore[return-value]
    given = request.authorization
    if _is_token(request.cookies.get(cookie, "")) or (given and _is_token(given.password or "")):
        return Authorization("basic", {"username": USER, "password": ""})
    words = "Open the address that sched-lab dashboard printed: it holds a token.\n"
    asks = {"WWW-Authenticate": 'Basic realm="sched-lab"'}
    return Response(words, 401, asks, content_type="text/plain")


def _is_token(given: str) -> bool:
    return compare_digest(given.encode(errors="replace"), os.environ[TOKEN].encode())
