"""Measure generated records on a published benchmark, beside the published rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience import registry
from consilience.commands.console import Interrupted, bar, console, say
from consilience.commands.models import pick_device
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.core.files import cache_folder, replacing, try_writing

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.domains.benchmark import Benchmark, Results


def benchmark(
    name: str,
    files: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    column: str | None = None,
    fcd: bool = True,
    processes: int = 1,
    device: str = "auto",
    cache: str | Path | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
) -> "Results":
    """Measure generated molecules on MOSES: 15 columns, and the distances of four properties.

    The data are fetched when they are not there. The first time, facts of the two test sets are computed and kept:
    some 20 minutes of one core. 30,000 molecules then take some 6. At least 30,000 are usual.

    Args:
        name: moses.
        files: generated SMILES, one a line, invalid ones included; several files are seeds of one model and give
            mean and standard deviation.
        out: where to write the results: .json or .csv.
        column: the SMILES column of a table; default: the first of the usual names.
        fcd: measure the Frechet ChemNet distance too, which needs the extra `moses`.
        processes: look at molecules in this many processes.
        device: of ChemNet: cpu, cuda, or auto: a GPU when there is one.
        cache: where fetched and computed data lie; default: $CONSILIENCE_CACHE, else ~/.cache/consilience.
        data_dir: a folder that may hold the data already; nothing found there is downloaded.
        progress: show bars with the rate and the time left.

    Returns:
        The runs, their mean and deviation.
    """
    from consilience import datasets

    if processes < 1:
        raise ConsilienceError(f"processes must be at least 1, not {processes}")
    paths = [Path(file).expanduser() for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise ConsilienceError("name a file of generated records")
    # Whatever can be wrong is found before data are fetched and minutes of work begin.
    chosen = registry.benchmark(name)(fcd=fcd, device=pick_device(device))
    generated = [chosen.read(path, column=column) for path in paths]
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        nothing = [dict.fromkeys((*chosen.columns, *chosen.further), 0.0)]
        try_writing(target, chosen.results([target], [[]], nothing).write)
    folder = datasets.fetch(chosen.dataset, cache_dir=cache, data_dir=data_dir, progress=progress)
    kept = cache_folder(cache) / "benchmarks" / chosen.name
    with bar("steps", shown=progress) as shown:

        def on_steps(what: str, steps: int) -> Callable[[int], object]:
            task = shown.add_task(what, total=steps, note="")
            return lambda done: shown.update(task, advance=done)

        values = chosen.measure(generated, folder, kept, processes=processes, on_steps=on_steps)
    results = chosen.results(paths, generated, values)
    if target is not None:
        with replacing(target) as part:
            results.write(part)
    return results


def new_parser() -> CommandParser:
    """The options of `consilience benchmark`."""
    parser = CommandParser("benchmark", benchmark, "moses FILE [FILE ...] [options]")
    parser.option("name", type=str, metavar="NAME")
    parser.option("files", nargs="+", type=str, metavar="FILE")
    parser.option("--out", type=str | None, metavar="FILE")
    parser.option("--column", type=str | None)
    parser.option("--fcd", type=bool)
    parser.option("--processes", type=int, metavar="N")
    parser.option("--device", type=str)
    parser.option("--cache", type=str | None, metavar="FOLDER")
    parser.option("--data-dir", type=str | None, metavar="FOLDER")
    return parser


def run(options: "Namespace") -> None:
    """`consilience benchmark`."""
    try:
        results = benchmark(**options.as_dict(), progress=True)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was complete of the references is kept") from None
    for table in _tables(registry.benchmark(options.name), results):
        console().print(table)
    if options.out is not None:
        say(str(options.out))


def _tables(benchmark: "type[Benchmark]", results: "Results") -> list[Any]:
    """The published columns with the published rows, and the further columns, for the terminal."""
    from rich import box
    from rich.table import Table

    runs = results.runs
    name = Path(runs[0].file).name if len(runs) == 1 else f"{len(runs)} files"
    below, above = benchmark.notes
    table = Table(
        title=f"{results.benchmark}: {name}, {sum(run.generated for run in runs):,} generated",
        caption=f"{below} Below the line: {results.source}",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model")
    for column in benchmark.columns:
        table.add_column(column.replace("/", "\n").replace("@", "\n@"), justify="right")
    for place, row in enumerate(results.rows(name)):
        cells = [_cell(column, row.mean, row.deviation) for column in benchmark.columns]
        table.add_row(row.model, *cells, end_section=place == 0)
    if not benchmark.further:
        return [table]
    further = Table(title=above, box=box.SIMPLE)
    for column in benchmark.further:
        further.add_column(column, justify="right")
    further.add_row(*(_cell(column, results.mean, results.deviation) for column in benchmark.further))
    return [table, further]


def _cell(column: str, mean: Mapping[str, float], deviation: Mapping[str, float] | None) -> str:
    if mean[column] != mean[column]:
        return "-"
    return f"{mean[column]:.4f}" if deviation is None else f"{mean[column]:.4f}\n±{deviation[column]:.4f}"
