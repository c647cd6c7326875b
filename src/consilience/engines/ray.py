"""The engine of many processes: Ray Data reads a file piece by piece and hands the pieces to actors with a model.

Each piece becomes one shard, a file of its own named by its number, that appears whole or not at all. What an actor
left behind when it was killed is computed again by another; a shard that is there is not. The shards are then
read in order, so that the output is that of the plain engine, to the bit where every process computes with as many
threads.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.errors import ConsilienceError
from consilience.engines.plain import Reading, remember_few_shapes

if TYPE_CHECKING:
    from consilience.domains.base import Domain
    from consilience.domains.pieces import Piece
    from consilience.domains.tables import EmbeddedRows

STORE = 512 * 2**20
"""Bytes of shared memory of a Ray that we start ourselves: a few pieces under way."""
JOB = "job.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a process needs to know.

    Args:
        model: the folder of a run.
        science: its science, as the registry takes it.
        source: the file to embed.
        options: of its reader.
        reading: how the model is read out.
        device: cpu, cuda, or auto.
        chunk: records of a piece.
        threads: of torch in each process; another number gives other last bits.
    """

    model: Path
    science: str
    source: Path
    options: dict[str, Any]
    reading: Reading
    device: str
    chunk: int
    threads: int

    def pieces(self) -> "Iterator[Piece]":
        """The pieces of the file, as the plain engine cuts them."""
        from consilience import registry
        from consilience.domains.preparation import stream_collection

        return stream_collection(registry.domain(self.science), self.source, self.options, self.chunk)

    def fingerprint(self) -> str:
        """A hash of the weights, the file (name, size and date) and the options: whose shards these are."""
        from consilience.core.checkpoint import WEIGHTS

        state = self.source.stat()
        told = asdict(self) | {"size": state.st_size, "changed": state.st_mtime_ns}
        digest = hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode())
        with (self.model / WEIGHTS).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def reference_to(science: "Domain", folder: Path) -> str:
    """The name under which another process finds a science: its own, or the path that the run was trained by."""
    from consilience import registry
    from consilience.domains.settings import read_settings

    for path in read_settings(folder).get("domains", []):
        if ":" in path and registry.domain(path).name == science.name:
            return str(path)
    return science.name


def run(job: Job, target: Path, *, workers: int) -> "Generator[EmbeddedRows, None, None]":
    """The rows of one piece after the other, computed over `workers` processes.

    Args:
        job: what to do.
        target: the output; shards lie in a hidden folder beside it until `forget`.
        workers: actors that hold a model each; a GPU each where the device is one.

    Raises:
        ConsilienceError: Ray is not installed, a number below 1, or what a process could not read.
    """
    from consilience.domains.tables import EmbeddedRows

    if workers < 1:
        raise ConsilienceError(f"workers must be at least 1, not {workers}")
    _need_ray()
    folder = _prepared(job, target)
    number = -1
    for number in _computed(job, folder, workers):
        yield EmbeddedRows.load(folder / shard_name(number))
    if number < 0:
        next(job.pieces(), None)  # says why there is nothing


def forget(target: Path) -> None:
    """Remove the shards of an output that is written."""
    shutil.rmtree(_shards(target), ignore_errors=True)


def shard_name(number: int) -> str:
    """The file of a piece."""
    return f"shard-{number:08d}.parquet"


def _shards(target: Path) -> Path:
    return target.with_name(f".{target.name}.shards").absolute()


def _prepared(job: Job, target: Path) -> Path:
    """The folder of the shards, empty unless it holds those of the same job."""
    folder, whose = _shards(target), json.dumps({"job": job.fingerprint()})
    told = folder / JOB
    if folder.exists() and (not told.is_file() or told.read_text() != whose):  # another job's, or cut off
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told.write_text(whose)
    return folder


def _need_ray() -> None:
    # No reports to anybody; and no look at the network for a newer version.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ConsilienceError(
            "the ray engine needs Ray: pip install 'consilience[ray]', or leave out --engine ray"
        ) from error


def _computed(job: Job, folder: Path, workers: int) -> Iterator[int]:
    """The numbers of the pieces in order, each when its shard is there."""
    import ray
    from ray.exceptions import RayError

    started = not ray.is_initialized()
    if started:
        # A cluster is joined where RAY_ADDRESS names one; else a small one is started for this run alone.
        own: dict[str, Any] = (
            {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "object_store_memory": STORE}
        )
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield from _in_order(_dataset(job, folder, workers))
    except RayError as error:
        told = re.search(r"ConsilienceError: (.+)", str(error))  # what a process of ours has said
        if told:
            raise ConsilienceError(told[1]) from error
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")
        raise ConsilienceError(
            f"ray: {reason.strip()}; what is done is kept, and the same command goes on"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _in_order(rows: Iterable[dict[str, Any]]) -> Iterator[int]:
    """Numbers 0, 1, 2, ... from numbers in any order."""
    waiting, following = set(), 0
    for row in rows:
        waiting.add(int(row["number"]))
        while following in waiting:
            waiting.remove(following)
            yield following
            following += 1


def _dataset(job: Job, folder: Path, workers: int) -> Iterable[dict[str, Any]]:
    import cloudpickle
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[pa.Table]:
        """One block a piece; what has a shard travels as its number alone."""
        for number, piece in enumerate(job.pieces()):
            done = (folder / shard_name(number)).is_file()
            content = b"" if done else cloudpickle.dumps(_loaded(piece))
            yield pa.table({"number": [number], "piece": pa.array([content], pa.large_binary())})

    class Pieces(Datasource):
        """One stream: a text file has to be read from its beginning."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
            nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, nothing)]

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # each piece leaves the reader when it is read
    gpus = 1 if _on_gpu(job.device) else 0
    read_in = ray.data.read_datasource(Pieces(), override_num_blocks=1, num_cpus=0)
    done = read_in.map_batches(
        Embedder,
        fn_constructor_args=(job, folder),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus,
    )
    return done.iter_rows()


def _loaded(piece: "Piece") -> "Piece":
    """The piece with its records in memory: what lies on disk would travel as the map of the whole file."""
    records = piece.collection.records
    if not hasattr(records, "load"):
        return piece
    return replace(piece, collection=replace(piece.collection, records=records.load()))


def _on_gpu(device: str) -> bool:
    import torch

    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


class Embedder:
    """What an actor does: loads the model once, then makes a shard of every piece it is given."""

    def __init__(self, job: Job, folder: Path) -> None:
        import torch

        from consilience import registry
        from consilience.commands.models import load

        remember_few_shapes()
        torch.set_num_threads(job.threads)
        self.job, self.folder = job, folder
        self.science = registry.domain(job.science)
        self.model = load(job.model, device=job.device)

    def __call__(self, batch: Any) -> Any:
        """number, piece -> number; the shard is there when this returns."""
        import pickle

        for number, content in zip(batch["number"].to_pylist(), batch["piece"].to_pylist()):
            shard = self.folder / shard_name(number)
            if content and not shard.is_file():  # written by an actor that died before it could say so
                piece = pickle.loads(content)  # made by `read` above in a process of this run, never a file
                self.job.reading.rows(self.model, self.science, piece).save(shard)
        return batch.select(["number"])
