"""Reading and writing a checkpoint need host memory for a few tensors, not for the model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import models
from research.core.layout import Layout
from research.huggingface.export import save
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer

MEBI = 2**20
LARGEST = 16 * MEBI  # the embedding; one layer of a parameter of the experts is as large
SHARD_BYTES = 48 * MEBI
SLACK = 4  # a range as it was read, turned, cast, and on its way to a device

MEASURE = """
import json, sys, threading, time
import jax
from configs import layouts
from research.core.layout import Layout
from research.huggingface import folder
from research.huggingface.export import save
from research.models.compute import Compute
from research.models.transformer import Transformer

def private_bytes():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

class Peak:
    def __enter__(self):
        self.start = self.bytes = private_bytes()
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self
    def watch(self):
        while not self.done.is_set():
            self.bytes = max(self.bytes, private_bytes())
            time.sleep(0.001)
    def __exit__(self, *_):
        self.done.set()
        self.watcher.join()
        self.grown = self.bytes - self.start

source, target, host_bytes, shard_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
folder.HOST_BYTES = host_bytes
opened = folder.open_folder(source)
layout = layouts.fsdp() if len(jax.devices()) > 1 else Layout()
model = Transformer(opened.architecture, layout.on(jax.devices()), Compute())
jax.block_until_ready([jax.device_put(0.0, device) for device in jax.devices()])
with Peak() as loading:
    params = folder.load(opened, model)
with Peak() as saving:
    save(target, model, params, source=source, max_shard_bytes=shard_bytes)
arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
split = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)}
print(json.dumps([loading.grown - arrays, saving.grown, arrays, max(split)]))
"""


def large(num_layers: int) -> Architecture:
    """Eight experts of 2 MiB a matrix in each layer: 48 MiB a layer, and 32 MiB at the two ends."""
    arch = models.tiny_mixtral()
    assert arch.moe is not None
    moe = dataclasses.replace(arch.moe, num_experts=8, expert_dim=1024)
    return dataclasses.replace(
        arch,
        vocab_size=8192,
        model_dim=512,
        num_layers=num_layers,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        ffw_dim=1024,
        moe=moe,
        tied_head=False,
        windows=(),
    )


def measure(tmp_path: Path, arch: Any, devices: int, host_bytes: int) -> tuple:
    """Write a checkpoint of zeros in shards; load and save it in a process of its own."""
    model = Transformer(arch, Layout().on(jax.devices()[:1]), Compute())
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.abstract())
    save(tmp_path / "m", model, zeros, max_shard_bytes=SHARD_BYTES)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "MALLOC_MMAP_THRESHOLD_": "65536"}
    folders = [str(tmp_path / "m"), str(tmp_path / "again")]
    command = [sys.executable, "-c", MEASURE, *folders, str(host_bytes), str(SHARD_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux memory counters"
)


@pytest.mark.parametrize(
    ("devices", "host_bytes", "num_layers"),
    [
        pytest.param(8, 256 * MEBI, 4, id="over eight devices"),
        pytest.param(1, LARGEST, 6, id="layer by layer onto one", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_streams_from_files_to_device_shards_and_back(
    devices, host_bytes, num_layers, tmp_path
):
    """The devices of a CPU have their arrays on the host too: these are subtracted."""
    arch = large(num_layers)
    loading, saving, arrays, used = measure(tmp_path, arch, devices, host_bytes)
    assert used == devices
    assert arrays > 10 * LARGEST
    assert loading < SLACK * LARGEST
    assert saving < SHARD_BYTES + SLACK * LARGEST
