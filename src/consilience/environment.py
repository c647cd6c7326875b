"""What a run ran on: versions, machine and memory, for reports, checkpoints and benchmark tables."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

_PACKAGES = ("consilience", "torch", "numpy", "scipy", "scikit-learn", "pytorch-lightning")
_SCIENCE_PACKAGES = ("anndata", "scanpy", "astropy", "specutils", "kcorrect", "rdkit", "ase")


def versions(*, science: bool = False) -> dict[str, str]:
    """Name -> version or description: python, packages, platform, cpu, cpus, device.

    Args:
        science: also the libraries of the sciences. No package but torch is imported for this.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES + (_SCIENCE_PACKAGES if science else ()):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    import torch

    # The full tag ("2.13.0+cpu") tells the build apart, which the package's metadata does not always.
    found["torch"] = torch.__version__
    return found | {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": str(usable_cpus()),
        "device": device_name(),
    }


def usable_cpus() -> int:
    """CPU cores this process may run on (fewer than the machine has, under `taskset` or a scheduler)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name() -> str:
    """Name of the accelerator torch would use ("NVIDIA H100 80GB HBM3", "Apple GPU (mps)"), else "cpu"."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0)
        return name if count == 1 else f"{count} x {name}"
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else "cpu"


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        # VmHWM starts anew with each program; ru_maxrss is inherited from the parent on Linux.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def peak_worker_memory_mib() -> float:
    """Largest resident memory that a finished child process reached; 0 without children, NaN where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def peak_device_memory_mib() -> float:
    """Largest memory torch has held on the current CUDA device so far, in MiB; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
