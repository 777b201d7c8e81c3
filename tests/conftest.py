"""Eight simulated devices, quick compiling, one cache of it, few and repeatable examples."""

import os
import tempfile
from pathlib import Path

# Most of what the tests take is compiling; without LLVM's optimiser it takes half.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# Programs that several tests and their processes share are compiled once a session.
_CACHE = Path(tempfile.gettempdir()) / f"maktab-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from hypothesis import settings  # noqa: E402  jax must not be imported before XLA_FLAGS is set

settings.register_profile("few", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("few")
