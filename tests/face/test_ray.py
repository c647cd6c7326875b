"""The ray engine gives what the plain one gives, survives the death of a worker and computes no shard twice."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import consilience
from consilience.core import embed as core_embed
from consilience.core.errors import ConsilienceError

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

SCIENCE = '''
import os, time
from consilience.domains.molecules.domain import MoleculesDomain

class Slow(MoleculesDomain):
    """Molecules that tell who embeds them, and take their time."""

    name = "slow"

    def embedding_columns(self, collection, index):
        with open(os.environ["SLOW_LOG"], "a") as log:
            log.write(f"{os.getpid()} {collection.ids[0]}\\n")
        time.sleep(float(os.environ.get("SLOW", "0.1")))
        return super().embedding_columns(collection, index)

DOMAIN = Slow()
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two workers on this machine, and where the science writes its log."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_science.py").write_text(SCIENCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("SLOW_LOG", str(folder / "log"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(str(folder))
        patch.setattr(core_embed, "CHUNK", 8)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the workers: other numbers of threads give other last bits
        ray.init(
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        yield folder
        ray.shutdown()
        torch.set_num_threads(threads)
        sys.modules.pop("slow_science", None)


@pytest.fixture(scope="module")
def run(cluster: Path) -> Path:
    """A model of the slow science."""
    names = ["C" * (1 + i % 7) + "O" * (1 + i % 3) for i in range(90)]
    lines = [f"{text} m{i}" for i, text in enumerate(names)]
    lines[20] = "nonsense m20"
    (cluster / "a.smi").write_text("\n".join(lines) + "\n")
    consilience.train(
        "slow_science:DOMAIN",
        data=cluster / "a.smi",
        out=cluster / "run",
        core={"width": 16, "depth": 1, "heads": 2},
        training={"steps": 1, "validations": 0},
        progress=False,
    )
    return cluster / "run"


@pytest.fixture
def log(cluster: Path) -> Path:
    """The pieces that were computed, and by whom."""
    (cluster / "log").write_text("")
    return cluster / "log"


def said(log: Path) -> list[tuple[int, str]]:
    return [(int(line.split()[0]), line.split()[1]) for line in log.read_text().splitlines()]


def shards(target: Path) -> list[Path]:
    return sorted(target.with_name(f".{target.name}.shards").glob("shard-*.parquet"))


def test_same_file_as_the_plain_engine(run: Path, log: Path, cluster: Path) -> None:
    plain, spread = cluster / "plain.parquet", cluster / "ray.parquet"
    consilience.embed(run, cluster / "a.smi", out=plain)
    log.write_text("")
    found = consilience.embed(run, cluster / "a.smi", out=spread, engine="ray")
    assert spread.read_bytes() == plain.read_bytes()
    assert Path(f"{spread}.failures.csv").read_bytes() == Path(f"{plain}.failures.csv").read_bytes()
    assert [failure.index for failure in found.failures] == [20] and len(found.vectors) == 89
    pieces = Counter(piece for _, piece in said(log))
    assert len(pieces) == 12 and set(pieces.values()) == {1}, "each shard once"
    assert len({worker for worker, _ in said(log)}) == 2 and os.getpid() not in dict(said(log))
    assert not shards(spread), "the shards are gone"


def test_a_killed_worker_is_replaced(run: Path, log: Path, cluster: Path, monkeypatch) -> None:
    plain, spread = cluster / "plain.parquet", cluster / "killed.parquet"
    killed: list[int] = []

    def kill() -> None:
        while len(said(log)) < 4:
            time.sleep(0.02)
        killed.append(said(log)[-1][0])
        os.kill(killed[0], signal.SIGKILL)

    murder = threading.Thread(target=kill, daemon=True)
    murder.start()
    consilience.embed(run, cluster / "a.smi", out=spread, engine="ray")
    murder.join(timeout=5)
    assert killed and spread.read_bytes() == plain.read_bytes()
    pieces = Counter(piece for _, piece in said(log))
    assert len(pieces) == 12 and sum(pieces.values()) <= 13, "only what was under way is computed again"
    assert len({worker for worker, _ in said(log)}) >= 2


def test_shards_that_are_there_are_not_computed_again(run: Path, log: Path, cluster: Path) -> None:
    from consilience.engines.plain import Reading
    from consilience.engines.ray import Job
    from consilience.engines.ray import run as start

    spread = cluster / "again.parquet"
    job = Job(
        model=run,
        science="slow_science:DOMAIN",
        source=cluster / "a.smi",
        options={},
        reading=Reading(domain="slow"),
        device="auto",
        chunk=8,
        threads=1,
    )
    rows = start(job, spread, workers=1)
    next(rows), next(rows)
    rows.close()
    time.sleep(1)
    before = {path.name: path.stat().st_mtime_ns for path in shards(spread)}
    assert len(before) >= 2
    log.write_text("")
    consilience.embed(run, cluster / "a.smi", out=spread, engine="ray", workers=1)
    assert len(said(log)) <= 12 - len(before) + 1
    assert spread.read_bytes() == (cluster / "plain.parquet").read_bytes()
    other = replace(job, reading=Reading(domain="slow", pool="last"))
    assert other.fingerprint() != job.fingerprint(), "another reading does not take these shards for its own"


def test_errors_are_one_line(run: Path, cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.smi").write_text("nonsense\nmore nonsense x\n")
    with pytest.raises(ConsilienceError, match="holds no readable record"):
        consilience.embed(run, tmp_path / "bad.smi", out=tmp_path / "b.parquet", engine="ray")
    with pytest.raises(ConsilienceError, match="workers must be at least 1"):
        consilience.embed(run, cluster / "a.smi", out=tmp_path / "b.parquet", engine="ray", workers=0)
    with pytest.raises(ConsilienceError, match="give MODEL, FILE and --out as paths"):
        consilience.embed(run, ["CCO"], engine="ray")
    with pytest.raises(ConsilienceError, match="known: plain, ray"):
        consilience.embed(run, cluster / "a.smi", engine="spark")  # type: ignore[arg-type]
    assert not (tmp_path / "b.parquet").exists()


def test_without_ray(run: Path, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ConsilienceError, match=r"pip install 'consilience\[ray\]'"):
        consilience.embed(run, cluster / "a.smi", out=tmp_path / "b.parquet", engine="ray")
