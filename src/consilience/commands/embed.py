"""Embed records with a trained model."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from consilience.commands.console import bar, say
from consilience.commands.files import failures_path, write_failures
from consilience.commands.given import shown_by
from consilience.commands.models import find_data, open_model, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing, try_writing
from consilience.engines.plain import Reading, remember_few_shapes

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.commands.given import Shown
    from consilience.core.embed import Precision
    from consilience.core.model import Embedding, FoundationModel, Pool
    from consilience.core.records import Collection, Failure
    from consilience.domains.base import Domain
    from consilience.domains.pieces import Piece
    from consilience.domains.tables import EmbeddedRows

    Rows = Generator[EmbeddedRows, None, None]

Engine = Literal["plain", "ray"]


def embed(
    model: "FoundationModel | str | Path",
    data: Any = None,
    *,
    out: str | Path | None = None,
    domain: str | None = None,
    layer: int = -1,
    pool: "Pool" = "mean",
    batch_size: int | None = None,
    precision: "Precision" = "32-true",
    read_options: Mapping[str, Any] | None = None,
    given: str | Path | None = None,
    device: str = "auto",
    engine: Engine = "plain",
    workers: int = 2,
    progress: bool = False,
) -> "Embedding":
    """Embed records: one vector each, the same whatever the batch size, the order and the neighbours.

    Args:
        model: the folder of a run; in Python also a loaded model.
        data: a file, or the name of a fetched data set; in Python also records (a list of SMILES, an AnnData) or a
            Collection. The bundled data where left out.
        out: where to write: .h5ad for cells (a copy of the input with .obsm["X_consilience"]), .parquet for all.
        domain: the science; needed only where the model knows several.
        layer: -1 is the final normalised state, 0 the embedding, 1..L the state after that block.
        pool: mean over tokens, or the first or last token.
        batch_size: records at a time; changes speed and memory only. By their tokens where left out.
        precision: 32-true, or bf16-mixed (faster where the hardware has it, three digits).
        read_options: of the reader of the file, such as --read-options.layer counts.
        given: a file of the other modality with the same ids, for a model that was trained on pairs: every vector is
            then of a record that the core sees beside its partner.
        device: cpu, cuda, or auto: a GPU when there is one.
        engine: plain (this process), or ray (a file over many processes and machines; extra consilience[ray]).
        workers: processes of the ray engine that hold a model each.
        progress: show a bar with the rate.

    Returns:
        The vectors with the ids of their records. Records that could not be read or tokenized are in `failures`
        with reasons, never zeros; for a file, `index` counts its records, the unreadable ones included. Of records in
        memory none need be readable: there are then no vectors.
    """
    import numpy as np

    from consilience.core.model import Embedding

    parts: list[EmbeddedRows] = []
    done = embed_to(
        model,
        data,
        None if out is None else Path(out).expanduser(),
        keep=parts.append,
        domain=domain,
        layer=layer,
        pool=pool,
        batch_size=batch_size,
        precision=precision,
        read_options=read_options,
        given=given,
        device=device,
        engine=engine,
        workers=workers,
        progress=progress,
    )
    return Embedding(
        vectors=np.concatenate([part.vectors for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        index=np.concatenate([part.places for part in parts if part.places is not None]),
        failures=tuple(done.failures),
    )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `consilience embed` did.

    Args:
        records: embedded.
        width: numbers each.
        failures: the other records.
    """

    records: int
    width: int
    failures: "list[Failure]"


def embed_to(
    model: "FoundationModel | str | Path",
    data: Any,
    target: Path | None,
    *,
    keep: Any = None,
    domain: str | None = None,
    layer: int = -1,
    pool: "Pool" = "mean",
    batch_size: int | None = None,
    precision: "Precision" = "32-true",
    read_options: Mapping[str, Any] | None = None,
    given: str | Path | None = None,
    device: str = "auto",
    engine: Engine = "plain",
    workers: int = 2,
    progress: bool = False,
) -> Written:
    """Embed piece by piece: nothing is held but one piece and the failures; arguments as in `embed`.

    Args:
        model: see `embed`.
        data: see `embed`.
        target: see `out` of `embed`.
        keep: called with the rows of every piece.
        domain: see `embed`, as are the others.
    """
    from contextlib import ExitStack, closing

    from consilience.core.embed import check_options

    network, folder = open_model(model, device)
    check_options(network, layer, pool, batch_size, precision)
    read = data is None or isinstance(data, str | Path)
    # Records in memory need no reader and no writer, and so no science that can be found by its name.
    science = science_of(network, folder, domain) if read or target is not None else None
    name = network.domain_of(domain) if science is None else science.name
    reading = Reading(domain=name, layer=layer, pool=pool, batch_size=batch_size, precision=precision)
    source = find_data(data) if read and data is not None else None
    opened = _Opened(science, source, None if read else _collected(data, network, name), read_options or {})
    there = target is not None and target.exists() and source is not None and source.exists()  # no pattern
    if target is not None and source is not None and there and target.samefile(source):
        raise ConsilienceError(f"{target} is the input itself; write the embedding to another file")
    written, width = 0, network.core_config.width
    partners = None if given is None else shown_by(network, folder, name, find_data(given), 1)
    if partners is not None and (science is None or engine != "plain"):
        raise ConsilienceError("given: records of a file are embedded beside another one by the plain engine")
    failures: list[Failure] = []
    with ExitStack() as held:
        if target is not None and science is not None:
            _check_target(science, opened, target)
            part = held.enter_context(replacing(target))
            writer = held.enter_context(science.embedding_writer(part, source, opened.whole))
        if engine == "ray":
            rows = _by_ray(network, folder, opened, reading, workers, target, device)
        elif engine == "plain":
            rows = _here(network, opened, reading, partners)
        else:
            raise ConsilienceError(f"unknown engine {engine!r}; known: plain, ray")
        held.enter_context(closing(rows))
        shown = held.enter_context(bar("records", shown=progress))
        task = shown.add_task("embedding", total=None, note="")
        for piece in rows:
            written += len(piece.vectors)
            failures += piece.failures
            if target is not None and science is not None:
                writer.write(piece)
            if keep is not None:
                keep(piece)
            shown.update(task, advance=len(piece.vectors) + len(piece.failures))
        if target is not None:
            write_failures(failures, target)
        if not written and (read or target is not None):  # of records in memory nothing is an answer too
            listed = f" (all in {failures_path(target)})" if target is not None else ""
            raise ConsilienceError(
                f"{opened.told}: none of {len(failures)} records can be embedded{listed}; "
                f"first: {failures[0].reason if failures else 'there are none'}"
            )
    if engine == "ray" and target is not None:
        from consilience.engines.ray import forget

        forget(target)
    return Written(records=written, width=width, failures=failures)


def new_parser() -> CommandParser:
    """The options of `consilience embed`."""
    parser = CommandParser("embed", embed, "MODEL [FILE] --out FILE [options]")
    parser.option("model", type=str, metavar="MODEL")
    parser.option("data", nargs="?", type=str, metavar="FILE")
    parser.option("--out", type=str, required=True, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--layer", type=int)
    parser.option("--pool", type=str)
    parser.option("--batch-size", type=int | None)
    parser.option("--precision", type=str)
    parser.option("--read-options", type=dict[str, Any], default={})
    parser.option("--given", type=str | None, metavar="FILE")
    parser.option("--device", type=str)
    parser.option("--engine", type=str)
    parser.option("--workers", type=int)
    return parser


def run(options: "Namespace") -> None:
    """`consilience embed`."""
    remember_few_shapes()
    chosen = options.as_dict()
    target = Path(chosen.pop("out")).expanduser()
    done = embed_to(chosen.pop("model"), chosen.pop("data"), target, **chosen, progress=True)
    failed = f"; {len(done.failures)} failed, see {failures_path(target)}" if done.failures else ""
    say(f"{options.out}: {done.records} records, {done.width} numbers each{failed}")


@dataclass(frozen=True)
class _Opened:
    """Where records come from: a file, the bundled data of a science, or memory."""

    science: "Domain | None"
    source: Path | None
    given: "Collection | None"
    options: Mapping[str, Any]

    @property
    def told(self) -> str:
        """For messages."""
        return str(self.source or "the records given")

    def pieces(self, size: int) -> "Iterator[Piece]":
        """The records in order; ConsilienceError where none of a file can be read."""
        from consilience.domains.pieces import pieces_of
        from consilience.domains.preparation import stream_collection

        if self.given is not None:
            return pieces_of(self.given, size)
        assert self.science is not None
        return stream_collection(self.science, self.source, self.options, size)

    def whole(self) -> "Collection":
        """All records at once."""
        from consilience.domains.preparation import load_collection

        if self.given is not None:
            return self.given
        assert self.science is not None
        return load_collection(self.science, self.source, self.options)


def _here(
    network: "FoundationModel", opened: _Opened, reading: Reading, partners: "Shown | None" = None
) -> "Rows":
    from consilience.core import embed as core_embed
    from consilience.domains.tables import EmbeddedRows
    from consilience.engines import plain

    pieces = opened.pieces(core_embed.CHUNK)
    if opened.science is not None and partners is not None:
        for piece in pieces:
            part, context = partners.matched(piece)
            yield reading.rows(network, opened.science, part, context)
        return
    if opened.science is not None:
        yield from plain.run(network, opened.science, pieces, reading)
        return
    for piece in pieces:  # a science that is known to the model alone: vectors and nothing beside them
        made = reading.embed(network, piece)
        moved = tuple(replace(f, index=int(piece.places[f.index])) for f in made.failures)
        yield EmbeddedRows(
            ids=made.ids, vectors=made.vectors, columns={}, places=piece.places[made.index], failures=moved
        )


def _by_ray(
    network: "FoundationModel",
    folder: Path | None,
    opened: _Opened,
    reading: Reading,
    workers: int,
    target: Path | None,
    device: str,
) -> "Rows":
    import torch

    from consilience.core import embed as core_embed
    from consilience.engines import ray

    if folder is None or opened.source is None or opened.science is None or target is None:
        raise ConsilienceError(
            "the ray engine embeds a file with a saved model into a file: give MODEL, FILE and --out as paths"
        )
    job = ray.Job(
        model=folder.absolute(),
        science=ray.reference_to(opened.science, folder),
        source=opened.source.absolute(),
        options=dict(opened.options),
        reading=reading,
        device=device,
        chunk=core_embed.CHUNK,
        threads=max(1, torch.get_num_threads() // max(1, workers)),
    )
    return ray.run(job, target, workers=workers)


def _collected(data: Any, network: "FoundationModel", domain: str) -> "Collection":
    """Records given in Python, as a Collection; ConsilienceError for what holds none of this science."""
    import numpy as np

    from consilience.core.records import Collection

    if isinstance(data, Collection):
        return replace(data, failures=())
    tokenizer = network.tokenizers[domain]
    names, records = tokenizer.names(data), tokenizer.accept(data)
    ids = np.array([str(i) for i in range(len(records))]) if names is None else names
    return Collection(records=records, ids=ids, source="the records given", origin="user", fingerprint="")


def _check_target(science: "Domain", opened: _Opened, target: Path) -> None:
    """Fail before the work on a target of another ending, or that could not be written."""

    def trial(path: Path) -> None:
        science.embedding_writer(path, opened.source, opened.whole)
        path.write_bytes(b"trial")

    try_writing(target, trial)


def embed_in_chunks(
    model: "FoundationModel", collection: "Collection", domain: str, progress: bool
) -> "Embedding":
    """`model.embed` with a bar; the chunks are the same whatever is shown, and so are the vectors."""
    import numpy as np

    from consilience.core import embed as core_embed
    from consilience.core.model import Embedding
    from consilience.domains.pieces import pieces_of

    reading, parts, first = Reading(domain=domain), [], 0
    with bar("records", shown=progress) as shown:
        task = shown.add_task("embedding", total=len(collection), note="")
        for piece in pieces_of(replace(collection, failures=()), core_embed.CHUNK):
            made = reading.embed(model, piece)
            moved = tuple(replace(f, index=f.index + first) for f in made.failures)
            parts.append(replace(made, index=made.index + first, failures=moved))
            first += len(piece.collection)
            shown.update(task, advance=len(piece.collection))
    return Embedding(
        vectors=np.concatenate([part.vectors for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        index=np.concatenate([part.index for part in parts]),
        failures=tuple(failure for part in parts for failure in part.failures),
    )
