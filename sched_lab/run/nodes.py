"""Which of the cluster's nodes run trials, and how many at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sched_lab.errors import OutOfReach
from sched_lab.run.deaths import cause
from sched_lab.run.proof import objection
from sched_lab.run.worker import Orders
from sched_lab.store.folder import Store
from sched_lab.sweep.spec import Resources

LOOK_SECONDS = 2.0  # between looks at which nodes there are
ANSWER_SECONDS = 60.0  # in which a node must prove that it is the same, before anything runs
RETURN_SECONDS = 60.0  # in which a node must come back when the last one has gone


class Nodes:
    """The cluster's nodes, less those that could not prove what a worker must."""

    def __init__(self, at_most: int | None) -> None:
        """At most so many trials run at once."""
        self._at_most = at_most
        self.left_out: dict[str, str] = {}
        """Which and why, by the node's id."""
        self.takes: dict[str, float] = {}
        """What each trial takes of a node, by Ray's names; see `fit`."""
        self.lacking = ""
        """Why no node is left that can run a trial; empty while there is one."""
        self._were_fit: set[str] = set()
        self._looked = self._last_fit = time.monotonic()

    def _trusted(self) -> list[dict[str, Any]]:
        """The living nodes that are not left out."""
        return [node for node in _nodes() if node["Alive"] and node["NodeID"] not in self.left_out]

    def check(self, orders: Orders) -> None:
        """Leave out the nodes that cannot prove what a worker must."""
        task = ray.remote(num_cpus=0, max_retries=0)(objection)
        token_file = str(Store.at(orders.root).token_file(orders.sweep))
        asked = {}
        for node in self._trusted():
            if not node["Resources"].get("CPU"):  # a head that runs no trials
                continue
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            probe = task.options(scheduling_strategy=here)
            asked[probe.remote(orders.evidence, token_file, orders.token)] = node["NodeID"]
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        for answer, node in asked.items():
            try:
                why = ray.get(answer) if answer in answered else "does not answer in time"
            except ray.exceptions.RayError as error:
                why = f"can't run a task: {cause(str(error))[0]}"
            if why:
                self.leave_out(node, why)

    def fit(self, wanted: Resources) -> dict[str, float]:
        """What each trial takes: as asked, else a GPU where there is one and a core where there is
        none.

        Raises OutOfReach when no node has that much.
        """
        nodes = [node["Resources"] for node in self._trusted()]
        has_gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
        cpu = 1.0 if wanted.cpu is None else wanted.cpu
        gpu = (1.0 if has_gpu else 0.0) if wanted.gpu is None else wanted.gpu
        self.takes = {"CPU": cpu, "GPU": gpu}
        if not self.slots:
            most = ", ".join(
                f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes
            )
            raise OutOfReach(
                f"a trial asks for {cpu:g} CPU and {gpu:g} GPU at once; the nodes have"
                f" {most or 'nothing'}{self._reasons('; left out: ')}"
            )
        return self.takes

    @property
    def slots(self) -> int:
        """How many trials the nodes can run at once."""
        room = sum(map(self._room, self._trusted()))
        return min(room, self._at_most or room)

    def full(self, out: int) -> bool:
        """Whether so many trials are as many as may run at once.

        Not where the nodes hold no more anyway: Tune uses a worker again for a trial that waits.
        """
        limit = self._at_most
        return limit is not None and out >= limit < sum(map(self._room, self._trusted()))

    def _room(self, node: dict[str, Any]) -> int:
        taken = [(name, amount) for name, amount in self.takes.items() if amount]
        return int(min(node["Resources"].get(name, 0) / amount for name, amount in taken))

    def leave_out(self, node: str, why: str) -> None:
        """Give the node no trial any more."""
        address = next(each["NodeManagerAddress"] for each in _nodes() if each["NodeID"] == node)
        self.left_out[node] = f"node {address} ({node[:8]}) {why}"

    def look(self, is_running: Callable[[], bool]) -> None:
        """Set `lacking` where no trial `is_running` and none will be."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        fit = {node["NodeID"] for node in self._trusted() if self._room(node)}
        self._were_fit |= fit
        if fit or is_running():
            self._last_fit = now
        gone = bool(self._were_fit - self.left_out.keys())  # and may come back
        if now - self._last_fit > RETURN_SECONDS * gone:
            left = "; those that could have left the cluster" if gone else ""
            self.lacking = f"no node is left that can run a trial{self._reasons(': ')}{left}"

    def _reasons(self, before: str) -> str:
        return "".join([before * bool(self.left_out), "; ".join(self.left_out.values())])


def _nodes() -> list[dict[str, Any]]:
    """All nodes that the cluster has or had."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes
