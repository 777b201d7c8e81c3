"""Laws of the record: what is resumed reads like what was never interrupted."""

import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from research.evaluate.results import Estimate, Evaluation
from research.report.lines import encode, read_lines
from research.report.sinks import MlFlow, WeightsAndBiases
from research.report.writers import Record

ROOT = Path(__file__).parents[2]
CYCLE = 3  # steps


def speak(record: Record, first: int, last: int) -> None:
    """Record steps `first` to `last` (exclusive) as a deterministic run would."""
    for start in range(first, last, CYCLE):
        if start % 6 == 0:
            scores = np.float32([start, 1.5, np.nan])
            record.round(start // 6, start, score_X=scores, selected=np.int32([2, 0]))
        for step in range(start + 1, start + CYCLE + 1):
            record.order(step, start // 6, [[step % 5, 4], [2]])
            record.losses(step, [[1 / step, np.nan], [np.float32(0.1)]])
        end = start + CYCLE
        record.metrics(end, {"loss_nats": np.float32(1.0 / end), "round": start // 6})
        record.timing(end, {"wall_s": 0.25})
        estimate = Estimate(value=end / 10, count=2, low=0.0, high=1.0)
        rows = ({"id": "a", "loss_nats": 0.5, "loss_nats_count": 7}, {"id": "b", "loss_nats": end})
        record.evaluation(
            end, Evaluation(name="held-out", metrics={"loss_nats": estimate}, rows=rows)
        )
        record.commit()


def bytes_of(workdir) -> dict[str, str]:
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def started(workdir, step: int) -> Record:
    record = Record(workdir)
    record.truncate_to(step)
    return record


@pytest.mark.parametrize(("killed_at", "checkpoint"), [(12, 9), (15, 6), (3, 0), (9, 9)])
def test_a_resumed_record_is_the_uninterrupted_one_byte_for_byte(tmp_path, killed_at, checkpoint):
    whole = started(tmp_path / "whole", 0)
    speak(whole, 0, 18)
    whole.close()
    speak(started(tmp_path / "killed", 0), 0, killed_at)
    resumed = started(tmp_path / "killed", checkpoint)
    speak(resumed, checkpoint, 18)
    resumed.close()
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert len(bytes_of(tmp_path / "whole")) == 5 + 6 + 3  # five files, six evaluations, 3 rounds


@pytest.mark.parametrize("name", ["metrics.jsonl", "order.jsonl", "evaluations.jsonl"])
def test_a_torn_last_line_is_repaired_on_resume(tmp_path, name):
    record = started(tmp_path, 0)
    speak(record, 0, 6)
    before = bytes_of(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write('{"step": 6, "loss_na')
    assert read_lines(tmp_path / name)[1]  # torn, and told so
    started(tmp_path, 6)
    assert bytes_of(tmp_path) == before


def test_a_malformed_line_names_its_file_and_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n{"step": 6, "loss\n{"step": 9}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        read_lines(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        started(tmp_path, 9)
    path.write_text('{"step": 3}\n[6]\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .* no JSON object"):
        read_lines(path)


def test_nothing_reaches_the_disk_before_the_cycle_is_committed(tmp_path):
    record = started(tmp_path, 0)
    record.metrics(3, {"loss_nats": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()
    record.commit()
    assert read_lines(tmp_path / "metrics.jsonl") == ([{"step": 3, "loss_nats": 1.0}], False)


def test_lines_are_strict_json_and_floats_come_back_exactly():
    line = encode({"x": np.float32(0.1), "y": float("nan"), "z": np.arange(3), "u": "Café"})
    assert json.loads(line) == {"x": float(np.float32(0.1)), "y": None, "z": [0, 1, 2], "u": "Café"}
    assert "NaN" not in line


def test_tensorboard_reads_the_record_and_forgets_what_was_taken_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    speak(started(tmp_path, 0), 0, 12)
    resumed = started(tmp_path, 6)
    resumed.metrics(9, {"loss_nats": 42.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = {event.step: event.value for event in events.Scalars("train/loss_nats")}
    assert seen == pytest.approx({3: 1 / 3, 6: 1 / 6, 9: 42.0})
    assert {e.step for e in events.Scalars("evaluate/held-out/loss_nats")} == {3, 6}


def test_recording_needs_neither_tensorflow_nor_torch(tmp_path):
    program = """
import pathlib, sys
from research.report.writers import Record
record = Record(pathlib.Path(sys.argv[1]))
record.truncate_to(0)
record.metrics(3, {"loss_nats": 1.0})
record.close()
sys.exit(f"imported: {found}" if (found := {"tensorflow", "torch"} & sys.modules.keys()) else 0)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_sink_that_is_not_installed_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for sink in (WeightsAndBiases(project="p"), MlFlow(experiment="e", tracking="t")):
        with pytest.raises(ModuleNotFoundError, match="pip install"):
            sink.open(tmp_path, 0)
    with pytest.raises(ValueError, match="mode='of'"):
        WeightsAndBiases(project="p", mode="of")


def test_every_sink_hears_the_same_numbers(tmp_path, monkeypatch):
    heard = []
    run = types.SimpleNamespace(
        id="r1", log=lambda values, step: heard.append((step, values)), finish=lambda: None
    )
    fake = types.SimpleNamespace(init=lambda **settings: run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    record = Record(tmp_path, sinks=(WeightsAndBiases(project="p", mode="offline"),))
    record.truncate_to(0)
    record.metrics(3, {"loss_nats": np.float32(0.5), "note": "text stays on disk"})
    record.close()
    assert heard == [(3, {"train/loss_nats": 0.5})]
    assert list((tmp_path / "tensorboard").iterdir())
