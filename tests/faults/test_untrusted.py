"""Files from elsewhere are data: nothing in them is run, and no path in them leads elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from research.core.parts import rebuild
from research.data.tokenizer import open_tokenizer
from research.huggingface.folder import INDEX_NAME, open_folder
from tests.flow.commands import STORIES, model_folder
from tests.flow.crew import ROOT

CODE = sorted(
    file
    for folder in ("research", "launch", "configs", "experiments")
    for file in (ROOT / folder).rglob("*.py")
)
# Ways in which reading a file, or a string from one, runs what it says.
RUNS_WHAT_IT_READS = {
    "pickle": r"\b(import|from) (pickle|cloudpickle|dill|joblib|shelve|marshal)\b|read_pickle",
    "torch.load": r"\btorch\.load\(|load_state_dict",
    "NumPy objects": r"allow_pickle\s*=\s*True",
    "foreign code": r"trust_remote_code(?!\s*=\s*False)",
    "eval": r"(?<![\w.])(eval|exec)\(",
    "YAML objects": r"yaml\.(load|unsafe_load|full_load)\(",
    "a shell": r"shell\s*=\s*True|os\.system\(",
}


@pytest.mark.parametrize("what", RUNS_WHAT_IT_READS)
def test_no_line_of_the_code_runs_what_it_reads(what):
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in CODE
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(RUNS_WHAT_IT_READS[what], line.partition("#")[0])
    ]
    assert not found


def test_the_patterns_find_what_they_name():
    lines = {
        "pickle": "import pickle",
        "torch.load": "torch.load(file)",
        "NumPy objects": "np.load(file, allow_pickle=True)",
        "foreign code": "from_pretrained(name, trust_remote_code=True)",
        "eval": "value = eval(text)",
        "YAML objects": "yaml.load(text)",
        "a shell": "run(words, shell=True)",
    }
    for what, line in lines.items():
        assert re.search(RUNS_WHAT_IT_READS[what], line)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/outside.safetensors",
        "..\\outside.safetensors",
        "outside.bin",
        "",
        7,
    ],
)
def test_an_index_names_weight_files_of_its_own_folder_only(tmp_path, name):
    folder = model_folder(tmp_path / "model", without=("model.safetensors",))
    (tmp_path / "outside.safetensors").write_bytes((STORIES / "model.safetensors").read_bytes())
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match=r"expected \.safetensors files of its own folder"):
        open_folder(folder)


def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(tmp_path):
    """Left to itself, transformers asks at the terminal, and runs the code on a "y"."""
    model_folder(
        tmp_path / "model",
        config={"model_type": "unheard", "auto_map": {"AutoConfig": "evil.Evil"}},
        tokenizer={
            "tokenizer_class": "Evil",
            "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        },
    )
    marker = tmp_path / "it-ran"
    (tmp_path / "model" / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Evil:\n    pass\n"
    )
    program = """
import sys
from research.data.tokenizer import open_tokenizer
open_tokenizer(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert not marker.exists()
    assert "its tokenizer cannot be opened" in done.stderr
    assert "[y/N]" not in done.stdout


def test_a_tokenizer_without_code_is_opened(tmp_path):
    assert open_tokenizer(str(model_folder(tmp_path / "model"))).vocab_size == 512


@pytest.mark.parametrize("named", ["os.system", "subprocess.Popen", "research.checkpoint.Store"])
def test_the_json_of_an_experiment_makes_parts_only(named):
    with pytest.raises(ValueError, match="part"):
        rebuild({"type": named, "args": "true"})


def test_a_round_with_objects_in_it_is_refused(tmp_path):
    import numpy as np

    from research.report.writers import Record

    (tmp_path / "rounds").mkdir()
    np.savez(tmp_path / "rounds" / "0000.npz", step=np.array([Path()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Record(tmp_path).truncate_to(0)
