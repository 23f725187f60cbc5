"""What Ray's words on a process that died come to: one line with the cause."""

from __future__ import annotations

import re

from sched_lab.trainers.failures import FailureKind

# Of Ray 2.50 to 2.60: "… where the task (…) was running was 9GB / 10GB (0.9)" up to 2.55.
_MEMORY = re.compile(
    r"Memory on the node \(IP: ([^,)]+).*?\bwas (?:running was )?([\d.]+GB)(?: used)? / ([\d.]+GB)"
)
_NODE = re.compile(r"because its node has died\.(.*)", re.DOTALL)
_DIED = re.compile(r"pid: (\d+)\n.*\bip: (\S+)\n.*worker process has died\.", re.DOTALL)


def cause(told: str) -> tuple[str, FailureKind]:
    """The reason and the kind of failure, from Ray's last words on a worker."""
    text = "\n".join(line.strip() for line in told.splitlines() if line.strip())
    if low := _MEMORY.search(text):
        node, used, limit = low.groups()
        return (
            f"Ray ended its process, since memory ran low: {used} of {limit} used on node {node}",
            FailureKind.OUT_OF_MEMORY,
        )
    kind = FailureKind.OUT_OF_MEMORY if "OutOfMemoryError" in text else FailureKind.LOST_PROCESS
    if node := _NODE.search(text):
        return f"its node died.{' '.join(node[1].split(chr(10)))}", kind
    if died := _DIED.search(text):
        pid, address = died.groups()
        return (
            f"its process ({pid} on node {address}) was killed or crashed: by the system for want"
            " of memory (see dmesg there), by a signal, or in native code",
            kind,
        )
    return text.rpartition("\n")[2] or "its process died without a word", kind
