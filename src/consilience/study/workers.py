"""Runs jobs one after another, or in several processes with one core each.

The cores of a small model's matrices are better spent on several runs than on one: two processes with one thread
do nearly twice the work of one process with two.
"""

import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from consilience.core.errors import ConsilienceError
from consilience.study import cell
from consilience.study.bench import Bench
from consilience.study.grid import Job
from consilience.study.results import Result

logger = logging.getLogger(__name__)
OnStep = Callable[[Job, int], None]

# What every worker process holds: set once by `_start_worker`, so that data cross to it once and not per job.
_worker: dict[str, Any] = {}


def run_jobs(
    jobs: Sequence[Job],
    bench: Bench,
    *,
    processes: int,
    on_step: OnStep,
) -> Iterator[Result]:
    """Results as they come; every one is written to its file before it is handed out."""
    if processes <= 1:
        for job in jobs:
            yield run_job(job, bench, lambda step, job=job: on_step(job, step))  # type: ignore[misc]
        return
    context = multiprocessing.get_context("spawn")
    steps: Any = context.Queue()
    threads = max(1, torch.get_num_threads() // processes)
    first = (context.Value("i", 0), visible_cards())
    pool = ProcessPoolExecutor(
        min(processes, max(len(jobs), 1)),
        context,
        initializer=_start_worker,
        initargs=(bench, steps, threads, *first),
    )
    try:
        waiting = {pool.submit(_in_worker, number, job): job for number, job in enumerate(jobs)}
        yield from _while_listening(waiting, steps, jobs, on_step)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def run_job(job: Job, bench: Bench, on_step: Callable[[int], None]) -> Result:
    """Compute one job and write its result; a failure is a result with a reason, never a gap."""
    try:
        result = cell.run(job, bench, on_step)
    except (ConsilienceError, RuntimeError, ValueError, FloatingPointError) as error:
        logger.error("%s, %s, seed %s failed: %s", job.setting.name, job.row, job.seed, error)
        result = job.failed(f"{type(error).__name__}: {error}")
    result.write(job.path)
    return result


def _while_listening(
    waiting: Mapping[Any, Job], steps: Any, jobs: Sequence[Job], on_step: OnStep
) -> Iterator[Result]:
    """Hand out finished jobs; between them, pass on what the workers say of their progress."""
    pending = set(waiting)
    while pending:
        try:
            finished = next(as_completed(pending, timeout=0.2))
        except TimeoutError:
            finished = None
        while True:
            try:
                number, step = steps.get_nowait()
            except queue.Empty:
                break
            on_step(jobs[number], step)
        if finished is not None:
            pending.remove(finished)
            yield finished.result()


def visible_cards() -> list[str]:
    """The GPUs of this process, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(card) for card in range(torch.cuda.device_count())]


def _start_worker(bench: Bench, steps: Any, threads: int, started: Any, cards: Sequence[str]) -> None:
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if cards:  # before anything touches a GPU: each worker sees one card, and takes it for the first
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    _worker.update(bench=bench, steps=steps)


def _leave_with_parent(parent: int) -> None:
    """A study that is killed must not leave its workers behind, training for nobody."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _in_worker(number: int, job: Job) -> Result:
    def tell(step: int) -> None:
        if step % 5 == 0:
            _worker["steps"].put((number, step))

    return run_job(job, _worker["bench"], tell)
