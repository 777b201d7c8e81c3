"""Guards, pulses and notices: who is missing is named in time, whatever the clocks say."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from launch.processes import Meeting, Notice, connect, is_own, join
from launch.runs import run
from research.train import watchdog
from research.train.loop import PreemptedError, train
from research.train.prepare import prepare
from research.train.watchdog import (
    AGAIN,
    BEATS,
    STOPPED,
    HeldError,
    Patience,
    Pulse,
    Unchanged,
    claim,
    file_of,
    machine,
    myself,
    read,
    write,
)
from tests.flow.crew import LIMIT_S, ROOT, Crew, crew, until
from tests.flow.runs import Silent, tiny_run

# Nothing here is measured in seconds but silence, which must be longer than a busy machine keeps a
# process that lives from its beat. What is noticed at once is so with a patience of any length.
SILENT_S, PATIENT_S = 3.0, 12.0

WORKER = """
import os, sys, time
from pathlib import Path
from launch.guard import guarded_by_parent
from research.train.watchdog import Patience, Pulse

folder, index, count, does, peer_s, hang_s = sys.argv[1:]
folder, index, count = Path(folder), int(index), int(count)
patience = Patience(peer_s=float(peer_s), hang_s=float(hang_s))
tell = guarded_by_parent(patience, "check the hosts")
if does == "aborts before it joins":
    os.abort()
pulse = Pulse(folder, index, "this start", patience, alone=False)
tell({"folder": str(folder), "start": "this start", "index": index, "count": count})

def wait_for_a_peer_that_never_answers():
    time.sleep(1000)

class Cycle:
    last = 4

pulse.recorded(Cycle, {}, {})
print("ready", flush=True)
if does == "fails":
    pulse.close(3, "row-7 is bad")
    sys.exit(3)
if does == "loses its connection":
    while not (folder / "cut").exists():
        time.sleep(0.02)
    pulse.close(3, "connection closed by peer", sure=False)
    sys.exit(1)
if does == "hangs":
    wait_for_a_peer_that_never_answers()
jump = iter(range(10**6))
if does == "has a jumping clock":
    time.time = lambda: 1e9 * (next(jump) % 7)
end = time.monotonic() + (1.5 * float(peer_s) if does in ("ends", "has a jumping clock") else 1000)
while time.monotonic() < end:
    pulse.scoring(1, 2)
    time.sleep(0.02)
pulse.close()
"""


def workers(
    folder: Path,
    *do: str,
    peer_s: float = SILENT_S,
    hang_s: float = 0.0,
    count: int | None = None,
):
    folder.mkdir(exist_ok=True)
    numbers = (str(peer_s), str(hang_s))
    commands = [
        ("-c", WORKER, str(folder), str(index), str(count or len(do)), does, *numbers)
        for index, does in enumerate(do)
    ]
    return crew(commands, folder / "logs")


def pids(folder: Path, together: Crew) -> list[int]:
    """Give the process ids of all, once the pulse of each has said its step."""
    files = [file_of(folder, index) for index in range(len(together.running))]
    until(lambda: all(read(file).get("step") == 4 for file in files), "all pulses")
    return [read(file)["pid"] for file in files]


# A process that goes


def test_who_was_killed_is_named_by_all_others(tmp_path):
    with workers(tmp_path, "works", "works", "works", peer_s=PATIENT_S) as together:
        pid = pids(tmp_path, together)[1]
        os.kill(pid, signal.SIGKILL)
        codes = together.codes_in_time(time.monotonic(), PATIENT_S)
        assert codes == [AGAIN, 128 + signal.SIGKILL, AGAIN]
        for index in (0, 2):
            says = rf"process 1 \(host .*, pid {pid}, last at step 4, .*\) has left: it was killed"
            assert re.search(says, together.said(index))
        assert "was killed by SIGKILL; the same command goes on" in together.said(1)


def test_a_process_that_stalls_is_missing_in_the_stated_time(tmp_path):
    with workers(tmp_path, "works", "works") as together:
        pid = pids(tmp_path, together)[1]
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        assert together.codes_in_time(begun, SILENT_S) == [AGAIN, AGAIN]
        assert time.monotonic() - begun > 0.5 * SILENT_S
        assert f"pid {pid}, last at step 4, scoring the pool) is missing: not heard of for" in (
            together.said(0)
        )


def test_a_host_that_vanishes_is_missing_and_its_worker_does_not_stay(tmp_path):
    with workers(tmp_path, "works", "works") as together:
        pid = pids(tmp_path, together)[0]
        together.running[0].kill()  # the guard; its worker dies with it
        assert together.codes_in_time(time.monotonic(), SILENT_S)[1] == AGAIN
        assert "process 0 (" in together.said(1)
        assert "is missing: not heard of for" in together.said(1)
        until(lambda: not alive(pid), "the worker to die with its guard")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_who_lost_a_connection_names_the_one_that_is_gone(tmp_path):
    with workers(tmp_path, "works", "works", "loses its connection") as together:
        pids(tmp_path, together)
        together.running[1].kill()
        (tmp_path / "cut").touch()
        assert together.codes()[2] == AGAIN
        assert "process 1 (" in together.said(2)
        assert "is missing" in together.said(2)


def test_an_error_of_one_ends_the_others_with_its_words(tmp_path):
    with workers(tmp_path, "works", "fails") as together:
        assert together.codes() == [STOPPED, STOPPED]
        assert "process 1 (" in together.said(0)
        assert "has left: row-7 is bad" in together.said(0)


def test_a_process_that_never_came_is_asked_about_its_folder(tmp_path):
    with workers(tmp_path, "works", count=2) as together:
        assert together.codes() == [AGAIN]
        assert "process 1 is missing: in " in together.said(0)
        assert "do all processes share this folder?" in together.said(0)


def test_an_abort_before_joining_says_what_to_check(tmp_path):
    with workers(tmp_path, "aborts before it joins") as together:
        assert together.codes() == [STOPPED]
        assert "check the hosts" in together.said(0)


# A process that gets no further


def test_a_hang_is_reported_with_the_stacks_of_all(tmp_path):
    with workers(tmp_path, "hangs", "hangs", peer_s=PATIENT_S, hang_s=1.0) as together:
        assert together.codes() == [STOPPED, STOPPED]
        for index in range(2):
            assert re.search(r"no progress for \d+ s: process [01] \(", together.said(index))
            stacks = (tmp_path / f"{index}.stacks.txt").read_text()
            assert "wait_for_a_peer_that_never_answers" in stacks
            assert "Stacks of every process" in together.said(index)


def test_a_process_alone_reports_a_hang_and_goes_on(tmp_path, capfd):
    pulse = Pulse(tmp_path, 0, "start", Patience(peer_s=0.6, hang_s=0.3), alone=True)
    until(lambda: "no progress for" in capfd.readouterr().err, "the report")
    assert "test_a_process_alone_reports_a_hang" in (tmp_path / "0.stacks.txt").read_text()
    pulse.close()
    assert read(file_of(tmp_path, 0))["left"]["code"] == 0


# Clocks


def test_a_clock_that_jumps_frightens_nobody(tmp_path):
    with workers(tmp_path, "has a jumping clock", "has a jumping clock") as together:
        assert together.codes() == [0, 0]
    for name in ("research/train/watchdog.py", "launch/guard.py", "launch/rollcall.py"):
        assert not re.search(r"time\.time\(|datetime|st_mtime", (ROOT / name).read_text())


def test_who_was_stopped_himself_has_not_seen_the_others_stand_still(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    unchanged = Unchanged(longest_s=2.0)
    seen = []
    for now[0] in (1.0, 2.0, 1000.0, 1001.0):
        seen.append(unchanged.see("beat 7"))
    assert seen == [0.0, 1.0, 3.0, 4.0]
    assert unchanged.see("beat 8") == 0.0


# Two on one work directory


def holder(folder: Path, **changes) -> dict:
    """Leave the pulse of a process that ran with a beat a tenth of a second."""
    file = file_of(folder / "processes", 0)
    file.parent.mkdir(parents=True)
    pulse = myself(0, "earlier") | {"beat": 3, "beat_s": 0.1, "step": 6} | changes
    write(file, pulse)
    return pulse


def test_a_second_process_is_refused_with_who_is_there(tmp_path):
    holder(tmp_path)
    with pytest.raises(
        HeldError, match=rf"held by process 0 \(host .*, pid {os.getpid()}, last at"
    ):
        claim(tmp_path, Patience(), print)


def test_what_a_dead_process_left_is_taken_over_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    holder(tmp_path, pid=child.pid, born="1")
    said: list[str] = []
    start = claim(tmp_path, Patience(), said.append)
    assert read(file_of(tmp_path / "processes", 0))["start"] == start
    assert not said  # such as that it is waiting


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path):
    holder(tmp_path, born="1")  # this pid, but of an earlier boot or container
    claim(tmp_path, Patience(), print)


def test_of_several_that_claim_a_folder_at_once_one_has_it(tmp_path):
    gate, held = threading.Barrier(6), []

    def enter() -> None:
        gate.wait()
        with contextlib.suppress(HeldError):
            held.append(claim(tmp_path, Patience(), print))

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == [read(file_of(tmp_path / "processes", 0))["start"]]


@pytest.mark.parametrize("pauses_before", ["create", "write"])
def test_of_two_that_take_over_one_has_it_however_long_the_other_pauses(
    tmp_path, monkeypatch, pauses_before
):
    holder(tmp_path, born="1")
    does, held = getattr(watchdog, pauses_before), []

    def enter() -> None:
        with contextlib.suppress(HeldError):
            held.append(claim(tmp_path, Patience(), print))

    def does_late(*what):
        monkeypatch.setattr(watchdog, pauses_before, does)
        enter()  # another comes, looks, and is done with it
        return does(*what)

    monkeypatch.setattr(watchdog, pauses_before, does_late)
    enter()
    assert held == [read(file_of(tmp_path / "processes", 0))["start"]]


def test_a_process_that_died_between_its_claim_and_its_pulse_holds_nothing(tmp_path):
    holder(tmp_path, born="1")
    first = claim(tmp_path, Patience(), print)
    folder = tmp_path / "processes"
    died = read(file_of(folder, 0)) | {"born": "1"}
    write(folder / "claim-1.json", died)
    write(file_of(folder, 0), died | {"start": "earlier"})
    second = claim(tmp_path, Patience(), print)
    assert second != first
    assert read(file_of(folder, 0))["start"] == second
    assert sorted(file.name for file in folder.iterdir()) == [
        "0.json",
        "claim-1.json",
        "claim-2.json",
    ]


def test_a_claim_that_was_not_written_whole_holds_nothing(tmp_path):
    holder(tmp_path, born="1")
    (tmp_path / "processes" / "claim-1.json").write_text('{"start": "ab')
    start = claim(tmp_path, Patience(), print)
    assert read(tmp_path / "processes" / "claim-2.json")["start"] == start


def test_what_came_to_its_end_holds_nothing(tmp_path):
    holder(tmp_path, left={"code": 0, "why": "", "sure": True, "other": False})
    claim(tmp_path, Patience(), print)


def test_another_hosts_silence_is_waited_for(tmp_path):
    holder(tmp_path, machine="another", host="elsewhere")
    said: list[str] = []
    begun = time.monotonic()
    claim(tmp_path, Patience(), said.append)
    assert time.monotonic() - begun >= BEATS * 0.1
    assert "left by process 0 (host elsewhere" in said[0]


def test_another_hosts_beat_is_heard(tmp_path):
    pulse = holder(tmp_path, machine="another", host="elsewhere")

    def beats(_: str) -> None:
        write(file_of(tmp_path / "processes", 0), pulse | {"beat": 4})

    with pytest.raises(HeldError, match=r"held by process 0 \(host elsewhere"):
        claim(tmp_path, Patience(), beats)


def test_a_torn_pulse_holds_nothing(tmp_path):
    (tmp_path / "processes").mkdir()
    file_of(tmp_path / "processes", 0).write_text('{"start": "ab')
    claim(tmp_path, Patience(), print)


def test_a_process_that_was_taken_over_ends_before_it_writes(tmp_path):
    with workers(tmp_path, "works") as together:
        pids(tmp_path, together)
        other = myself(0, "another start") | {"beat": 0, "beat_s": 0.1}

        def has_ended() -> bool:
            write(file_of(tmp_path, 0), other)  # a beat that was under way writes over it once
            return together.running[0].poll() is not None

        until(has_ended, "the worker to end")
        assert together.codes() != [0]
        assert "was taken over by process 0" in together.said(0)
        assert read(file_of(tmp_path, 0))["start"] == "another start"


def test_a_run_leaves_alone_what_another_holds(tmp_path):
    holder(tmp_path / "run")
    with pytest.raises(HeldError, match="wait for it, end it, or give another --workdir"):
        run(tiny_run(tmp_path), tmp_path / "run", Console(quiet=True), command=[])
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["processes"]


def test_a_machine_is_known_by_its_boot_and_its_pid_namespace():
    boot, namespace = machine().split(" ")
    assert len(boot) == 36
    assert namespace.startswith("pid:[")


# Leaving


def test_sigterm_is_heard_and_what_was_there_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with Notice() as notice:
        assert not notice()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_asked_to_leave_saves_and_goes_on_bit_for_bit(tmp_path):
    experiment = tiny_run(tmp_path, {"model.num_layers": 1, "clock.save_every": 0})
    whole = train(prepare(experiment), tmp_path / "whole", Silent())
    for answers in ([True], [False, True], [False, False, True]):
        asked = iter(answers)
        with pytest.raises(PreemptedError, match="the same command goes on there") as caught:
            train(prepare(experiment), tmp_path / "cut", Silent(), asked_to_leave=asked.__next__)
        assert caught.value.exit_code == AGAIN
    resumed = train(prepare(experiment), tmp_path / "cut", Silent())
    for name in ("metrics.jsonl", "order.jsonl", "losses.jsonl", "rounds/0001.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for a, b in zip(jax.tree.leaves(whole.learner), jax.tree.leaves(resumed.learner), strict=True):
        np.testing.assert_array_equal(a, b)


# Words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"coordinator": "here:1", "processes": 2}, "give all three"),
        ({"processes": 2, "process": 0}, "give all three"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({"coordinator": "here:1", "processes": 2, "process": 2}, "number them from 0 to 1"),
        ({"automatic": True, "coordinator": "here:1"}, "not both"),
        ({"join_s": 0.0}, "must be positive"),
    ],
)
def test_a_meeting_that_cannot_be_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Meeting(**given)


def test_where_processes_find_one_another_jax_is_told_none_of_it(monkeypatch):
    """Every number and address that is not given is looked for in Slurm's variables, a TPU's
    metadata, or those of Open MPI; one that is given would be taken as it is."""
    signature, given = inspect.signature(jax.distributed.initialize), []
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # collectives, for this process
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *words, **named: given.append(signature.bind(*words, **named).arguments),
    )
    members = connect(Meeting(automatic=True, join_s=7.0))
    (told,) = given
    said = {name: value for name, value in told.items() if value is not None}
    assert said.keys() == {"initialization_timeout", "heartbeat_timeout_seconds"}
    assert said["initialization_timeout"] == 7
    assert [member["me"] for member in members] == [True]


def test_where_there_is_nothing_to_find_the_others_by_it_is_said():
    program = "from launch.processes import Meeting, connect; connect(Meeting(automatic=True))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "JoinError: --distributed: jax finds no cluster here" in done.stderr


def test_what_is_said_by_hand_is_what_jax_is_told(monkeypatch):
    given = []
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: given.append(words))
    connect(Meeting(coordinator="here:1", processes=3, process=2))
    assert given == [("here:1", 3, 2)]


def test_one_alone_meets_nobody():
    group = join(Meeting(), print)
    assert (group.index, group.count) == (0, 1)


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed"), False),
        (jax.errors.JaxRuntimeError("INTERNAL"), False),
        (ValueError("row-7 is bad"), True),
    ],
)
def test_what_jax_raises_may_be_the_loss_of_another(error, own):
    with pytest.raises(type(error)) as caught:
        raise error
    assert is_own(caught.value) == own
