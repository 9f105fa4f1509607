"""What every test runs under: no network, few threads, the same examples on every run."""

from __future__ import annotations

import os

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # the models are tiny: a second thread only waits for the first, for long where the machine has other work
}.items():
    os.environ.setdefault(_name, _value)
os.environ.pop("THRIFTY_DEBUG", None)

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
