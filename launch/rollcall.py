"""The roll call: every process of a command reports to process 0 before jax connects them.

jax alone waits in silence, and ends a process that waited in vain without saying for whom.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

RETRY_S = 0.5  # between two attempts to reach process 0
LINE_S = 5.0  # in which one that connected must have said who it is
LONGEST_LINE = 4096


class JoinError(RuntimeError):
    """Not all processes came together."""


def roll_call(address: str, count: int, index: int, wait_s: float) -> None:
    """Come back once processes 0 to `count - 1` have met at `address`, where process 0 listens.

    Raises:
      JoinError: who is missing, who contradicts whom, or what to check.
    """
    until = time.monotonic() + wait_s
    if index == 0:
        _call(address, count, until, wait_s)
    else:
        _report(address, count, index, until, wait_s)


def host_and_port(address: str) -> tuple[str, int]:
    """Take HOST:PORT apart.

    Raises:
      ValueError: it is something else.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"--coordinator {address!r}: expected HOST:PORT, such as 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def _call(address: str, count: int, until: float, wait_s: float) -> None:
    """Wait for all others, and tell each of them how it went."""
    port = host_and_port(address)[1]
    present = {0: f"host {socket.gethostname()}, pid {os.getpid()}"}
    with contextlib.ExitStack() as open_, _listening(port) as server:
        callers: list[socket.socket] = []
        problem = None
        while len(present) < count and problem is None:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                caller = open_.enter_context(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(count)) - present.keys())
                problem = _absent(missing, present, address, count, wait_s)
                break
            said = _hear(caller)
            if said:
                callers.append(caller)
                problem = _contradiction(said, present, count)
        for caller in callers:
            _tell(caller, {"problem": problem})
    if problem is not None:
        raise JoinError(problem)


def _contradiction(said: Mapping[str, Any], present: dict[int, str], count: int) -> str | None:
    """Enter who came into the list of those present, unless it cannot be."""
    index, where = said["process"], f"host {said['host']}, pid {said['pid']}"
    if said["processes"] != count:
        return (
            f"process {index} ({where}) was started with --processes {said['processes']}, process "
            f"0 ({present[0]}) with {count}; give all the same number"
        )
    if index in present:
        return (
            f"two processes were started with --process {index}: {present[index]}, and {where}; "
            f"number them from 0 to {count - 1}"
        )
    present[index] = where
    return None


def _absent(
    missing: list[int], present: Mapping[int, str], address: str, count: int, wait_s: float
) -> str:
    there = "; ".join(f"process {index}: {where}" for index, where in sorted(present.items()))
    return (
        f"process {', '.join(map(str, missing))} of {count} did not come in {wait_s:.0f} s. "
        f"There are {there}. Check that each missing one was started, with --coordinator {address} "
        f"and --processes {count}, that this address leads here from its host, and that no "
        "firewall closes the port between them"
    )


def _report(address: str, count: int, index: int, until: float, wait_s: float) -> None:
    """Report to process 0, and wait for what it says."""
    me = {"process": index, "processes": count, "host": socket.gethostname(), "pid": os.getpid()}
    with _connected(address, index, until, wait_s) as caller:
        caller.settimeout(max(until - time.monotonic(), 0.0) + LINE_S)
        _tell(caller, me)
        answer = _hear(caller)
    if not answer:
        raise JoinError(
            f"process {index} reached {address}, but nobody there answered as process 0 does: it "
            "has ended, or another program listens on this port; look at its output, or take "
            "another port"
        )
    if answer["problem"] is not None:
        raise JoinError(answer["problem"])


def _connected(address: str, index: int, until: float, wait_s: float) -> socket.socket:
    host, port = host_and_port(address)
    while True:
        left_s = until - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(left_s, RETRY_S))
        except OSError as error:  # not there yet, or never
            if left_s <= RETRY_S:
                raise JoinError(
                    f"process {index} could not reach process 0 at {address} for {wait_s:.0f} s "
                    f"({error}). Check that process 0 was started, with --process 0 and the same "
                    f"--coordinator, that the name {host} leads to its host from "
                    f"{socket.gethostname()}, and that no firewall closes port {port} between them"
                ) from error
        time.sleep(RETRY_S)


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """Listen on all addresses of this host."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise JoinError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()} ({error}); end what "
            "uses it, or give all processes another --coordinator HOST:PORT"
        ) from error
    with server:
        yield server


def _tell(caller: socket.socket, value: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who has gone meanwhile is missed by jax next
        caller.sendall(json.dumps(value).encode() + b"\n")


def _hear(caller: socket.socket) -> dict[str, Any]:
    """Read one line of JSON; {} from someone who says nothing of the kind."""
    if caller.gettimeout() is None:
        caller.settimeout(LINE_S)
    try:
        with caller.makefile("rb") as lines:
            value = json.loads(lines.readline(LONGEST_LINE))
    except (OSError, ValueError):
        return {}
    known = isinstance(value, dict) and ({"process", "processes", "host", "pid"} <= value.keys())
    return value if known or (isinstance(value, dict) and "problem" in value) else {}
