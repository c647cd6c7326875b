"""What a run ran on is told in full."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from consilience import environment


def test_versions_are_complete_and_plain_text() -> None:
    found = environment.versions(science=True)
    assert {"python", "torch", "numpy", "consilience", "platform", "cpu", "cpus", "device"} <= set(found)
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__
    assert all(isinstance(value, str) and value for value in found.values())
    assert json.loads(json.dumps(found)) == found


def test_missing_package_is_said(monkeypatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", ("no-such-package",))
    assert environment.versions()["no-such-package"] == "not installed"


def test_peak_memory_remembers_what_was_held() -> None:
    """In a process of its own, so that no earlier test has raised the peak."""
    code = (
        "from consilience.environment import peak_memory_mib as peak\n"
        "before = peak(); block = b'x' * (150 * 2**20); held = peak(); del block; print(before, held, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, held, after = map(float, done.stdout.split())
    if math.isnan(before):
        pytest.skip("this system does not tell")
    assert before < 100
    assert 140 < held - before < 200
    assert after == pytest.approx(held, abs=5)


def test_device_name_follows_torch(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card X")
    assert environment.device_name() == "2 x Card X"
