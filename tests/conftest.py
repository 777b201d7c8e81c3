"""Eight simulated devices and few, repeatable hypothesis examples for every test."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

from hypothesis import settings

settings.register_profile("few", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("few")
