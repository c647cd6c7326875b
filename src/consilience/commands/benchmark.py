"""Measure generated records on a published benchmark, beside the published rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.console import Interrupted, bar, console, say
from consilience.commands.files import replacing, try_writing
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.domains.molecules.moses import Results

KNOWN = ("moses",)


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
    about 25 minutes of one core. 30,000 molecules then take about 6. At least 30,000 are usual.

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
    if name not in KNOWN:
        raise ConsilienceError(f"unknown benchmark {name!r}; known: {', '.join(KNOWN)}")
    if processes < 1:
        raise ConsilienceError(f"processes must be at least 1, not {processes}")
    paths = [Path(file).expanduser() for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise ConsilienceError("name a file of generated SMILES")
    results = _moses(paths, out, column, fcd, processes, device, cache, data_dir, progress)
    if out is not None:
        with replacing(Path(out).expanduser()) as part:
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
        raise Interrupted("interrupted; facts of a test set that were complete are kept") from None
    for table in _tables(results):
        console().print(table)
    if options.out is not None:
        say(str(options.out))


def _moses(
    paths: Sequence[Path],
    out: str | Path | None,
    column: str | None,
    fcd: bool,
    processes: int,
    device: str,
    cache: str | Path | None,
    data_dir: str | Path | None,
    progress: bool,
) -> "Results":
    from importlib.metadata import version

    from consilience import datasets
    from consilience.commands.models import pick_device
    from consilience.domains.molecules import moses

    # Whatever can be wrong is found before the minutes of work.
    strings = [moses.generated_strings(path, column=column) for path in paths]
    if out is not None:
        nothing = dict.fromkeys((*moses.COLUMNS, *moses.PROPERTIES), 0.0)
        empty = moses.Results(
            benchmark="moses", runs=(moses.Run(file="", generated=0, values=nothing),), versions={}
        )
        try_writing(Path(out).expanduser(), empty.write)
    net = moses.ChemNet(pick_device(device)) if fcd else None
    folder = datasets.fetch("moses", cache_dir=cache, data_dir=data_dir, progress=progress)
    computed = datasets.cache_folder(cache) / "molecules" / "moses-references"
    with bar("steps", shown=progress) as shown:

        def on_steps(what: str, steps: int) -> Callable[[int], object]:
            task = shown.add_task(what, total=steps, note="")
            return lambda done: shown.update(task, advance=done)

        against = moses.references(folder, computed, net=net, processes=processes, on_steps=on_steps)
        runs = []
        for path, generated in zip(paths, strings):
            values = moses.measure(generated, against, net=net, processes=processes, on_steps=on_steps)
            runs.append(moses.Run(file=str(path), generated=len(generated), values=values))
    packages = ("consilience", "rdkit", *(("fcd_torch",) if fcd else ()))
    return moses.Results(
        benchmark="moses", runs=tuple(runs), versions={name: version(name) for name in packages}
    )


def _tables(results: "Results") -> list[Any]:
    """The published columns with the published rows, and the distances of properties, for the terminal."""
    from rich import box
    from rich.table import Table

    from consilience.domains.molecules import moses

    runs = results.runs
    name = Path(runs[0].file).name if len(runs) == 1 else f"{len(runs)} files"
    table = Table(
        title=f"MOSES: {name}, {sum(run.generated for run in runs):,} generated",
        caption=f"Lower is better for FCD alone. Below the line: {moses.source()}",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model")
    for column in moses.COLUMNS:
        table.add_column(column.replace("/", "\n").replace("@", "\n@"), justify="right")
    for place, row in enumerate(results.rows(name)):
        cells = [_cell(row.mean[c], row.deviation and row.deviation[c]) for c in moses.COLUMNS]
        table.add_row(row.model, *cells, end_section=place == 0)
    distances = Table(title="Wasserstein-1 distance to the test set", box=box.SIMPLE)
    for column in moses.PROPERTIES:
        distances.add_column(column, justify="right")
    spread = results.deviation
    distances.add_row(*(_cell(results.mean[c], spread and spread[c]) for c in moses.PROPERTIES))
    return [table, distances]


def _cell(value: float, deviation: float | None) -> str:
    if value != value:
        return "-"
    return f"{value:.4f}" if deviation is None else f"{value:.4f}\n±{deviation:.4f}"
