"""The roll call: who is missing, or contradicts, is said before jax waits in silence."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from launch.rollcall import JoinError, host_and_port, roll_call
from tests.flow.crew import free_port

WAIT_S = 1.0  # for nobody
LATE_S = 4.0  # in which one that is there has come, also on a busy machine


def called(*processes: tuple[int, int], wait_s: float = WAIT_S) -> dict[int, str]:
    """Call the roll for (index, count) of each process; give what each was told, "" if all met."""
    address, told = f"127.0.0.1:{free_port()}", {}

    def one(place: int, index: int, count: int) -> None:
        try:
            roll_call(address, count, index, wait_s)
            told[place] = ""
        except JoinError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=one, args=(x, *p)) for x, p in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_go_on_once_all_are_there():
    assert called((2, 3), (0, 3), (1, 3), wait_s=20.0) == {0: "", 1: "", 2: ""}


def test_who_is_missing_is_said_to_all_who_are_there():
    told = called((0, 4), (2, 4), wait_s=LATE_S)
    for said in told.values():
        assert "process 1, 3 of 4 did not come in 4 s" in said
        assert "process 2: host" in said
        assert "firewall" in said


def test_other_numbers_of_processes_are_a_contradiction():
    for said in called((0, 2), (1, 3), wait_s=20.0).values():
        assert "process 1 (host" in said
        assert "was started with --processes 3, process 0 (host" in said


def test_two_of_one_number_are_a_contradiction():
    told = called((0, 3), (1, 3), (1, 3), wait_s=20.0)
    assert "two processes were started with --process 1: host" in told[0]


def test_one_that_finds_nobody_says_what_to_check():
    (said,) = called((1, 2)).values()
    for words in ("process 1 could not reach process 0", "--coordinator", "firewall", "refused"):
        assert words in said


def test_a_name_that_leads_nowhere_is_said():
    with pytest.raises(JoinError, match=r"the name nowhere\.invalid leads to its host"):
        roll_call("nowhere.invalid:8476", 2, 1, WAIT_S)


def test_a_port_that_is_taken_is_said():
    with (
        socket.create_server(("", 0)) as server,
        pytest.raises(JoinError, match="process 0 cannot listen on port"),
    ):
        roll_call(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, WAIT_S)


def test_another_program_on_the_port_is_not_process_0():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answered = threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0\r\n"))
        answered.start()
        with pytest.raises(JoinError, match="another program listens on this port"):
            roll_call(address, 2, 1, WAIT_S)
        answered.join()


def test_who_says_nothing_of_the_kind_is_ignored():
    address, told = f"127.0.0.1:{free_port()}", []

    def first() -> None:
        roll_call(address, 2, 0, 20.0)
        told.append("met")

    thread = threading.Thread(target=first)
    thread.start()
    stranger = connected(address)
    stranger.sendall(b"GET / HTTP/1.1\r\n")
    roll_call(address, 2, 1, 20.0)
    thread.join()
    stranger.close()
    assert told == ["met"]


def connected(address: str) -> socket.socket:
    end = time.monotonic() + 20.0
    while True:
        try:
            return socket.create_connection(host_and_port(address), timeout=5.0)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)
