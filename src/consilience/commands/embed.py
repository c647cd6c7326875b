"""Embed records with a trained model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.console import bar, say
from consilience.commands.files import failures_path, replacing, try_writing, write_failures
from consilience.commands.models import open_model, read_collection, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.model import Embedding, FoundationModel, Pool
    from consilience.core.records import Collection
    from consilience.domains.base import Domain

CHUNK = 1024
"""Records between two movements of the bar."""


def embed(
    model: "FoundationModel | str | Path",
    data: Any = None,
    *,
    out: str | Path | None = None,
    domain: str | None = None,
    layer: int = -1,
    pool: "Pool" = "mean",
    batch_size: int = 64,
    read_options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: bool = False,
) -> "Embedding":
    """Embed records: one vector each, the same whatever the batch size, the order and the neighbours.

    Args:
        model: the folder of a run; in Python also a loaded model.
        data: a file, or the name of a fetched data set; in Python also records or a Collection. The bundled
            data where left out.
        out: where to write: .h5ad for cells (a copy of the input with .obsm["X_consilience"]), .parquet for all.
        domain: the science; needed only where the model knows several.
        layer: -1 is the final normalised state, 0 the embedding, 1..L the state after that block.
        pool: mean over tokens, or the first or last token.
        batch_size: records at a time; changes speed and memory only.
        read_options: of the reader of the file, such as --read-options.layer counts.
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show a bar with the rate and the time left.

    Returns:
        The vectors with the ids of their records. Records that could not be read or tokenized are in `failures`
        with reasons, never zeros; for a file, `index` counts its records, the unreadable ones included.
    """
    network, folder = open_model(model, device)
    read = data is None or isinstance(data, str | Path)
    target = None if out is None else Path(out).expanduser()
    # Records in memory need no reader and no writer, and so no science that can be found by its name.
    science = science_of(network, folder, domain) if read or target is not None else None
    name = network.domain_of(domain) if science is None else science.name
    collection = read_collection(science, data, read_options) if read and science else _collected(data)
    if target is not None and science is not None:
        _check_target(science, collection, target)
    made = embed_in_chunks(network, collection, name, layer, pool, batch_size, progress)
    found = _of_source(collection, made) if read else made
    if target is not None:
        write_failures(found.failures, target)
    if not len(made.vectors):
        listed = f" (all in {failures_path(target)})" if target is not None else ""
        raise ConsilienceError(
            f"{collection.source}: none of {len(collection)} records can be embedded{listed}; "
            f"first: {found.failures[0].reason if found.failures else 'there are none'}"
        )
    if target is not None and science is not None:
        with replacing(target) as part:
            science.write_embedding(collection, made, part)
    return found


def new_parser() -> CommandParser:
    """The options of `consilience embed`."""
    parser = CommandParser("embed", embed, "MODEL [FILE] --out FILE [options]")
    parser.option("model", type=str, metavar="MODEL")
    parser.option("data", nargs="?", type=str, metavar="FILE")
    parser.option("--out", type=str, required=True, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--layer", type=int)
    parser.option("--pool", type=str)
    parser.option("--batch-size", type=int)
    parser.option("--read-options", type=dict[str, Any], default={})
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience embed`."""
    made = embed(**options.as_dict(), progress=True)
    failed = f"; {len(made.failures)} failed, see {failures_path(Path(options.out))}" if made.failures else ""
    say(f"{options.out}: {len(made.vectors)} records, {made.vectors.shape[1]} numbers each{failed}")


def _collected(data: Any) -> "Collection":
    """Records given in Python, as a Collection."""
    import numpy as np

    from consilience.core.records import Collection

    if isinstance(data, Collection):
        return replace(data, failures=())
    ids = np.array([str(i) for i in range(len(data))])
    return Collection(records=data, ids=ids, source="the records given", origin="user", fingerprint="")


def _check_target(science: "Domain", collection: "Collection", target: Path) -> None:
    """Fail before the work on a target that could not be written, or that is the input itself."""
    import numpy as np

    from consilience.core.model import Embedding

    source = Path(collection.source)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConsilienceError(f"{target} is the input itself; write the embedding to another file")
    if not len(collection):
        return
    one = replace(collection.take([0]), source="trial")
    trial = Embedding(vectors=np.zeros((1, 1), np.float32), ids=one.ids, index=np.zeros(1, np.int64))
    try_writing(target, lambda path: science.write_embedding(one, trial, path))


def embed_in_chunks(
    model: "FoundationModel",
    collection: "Collection",
    domain: str,
    layer: int,
    pool: "Pool",
    batch_size: int,
    progress: bool,
) -> "Embedding":
    """`model.embed` with a bar; the chunks are the same whatever is shown, and so are the vectors."""
    import numpy as np

    from consilience.core.model import Embedding
    from consilience.core.records import take_records

    n = len(collection)
    parts, firsts = [], range(0, max(n, 1), CHUNK)
    with bar("records", shown=progress) as shown:
        task = shown.add_task("embedding", total=n, note="")
        for first in firsts:
            chosen = np.arange(first, min(first + CHUNK, n))
            records = collection.records if n <= CHUNK else take_records(collection.records, chosen)
            parts.append(
                model.embed(
                    records,
                    domain=domain,
                    ids=collection.ids[chosen],
                    layer=layer,
                    pool=pool,
                    batch_size=batch_size,
                )
            )
            shown.update(task, advance=len(chosen))
    return Embedding(
        vectors=np.concatenate([part.vectors for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        index=np.concatenate([part.index + first for part, first in zip(parts, firsts)]),
        failures=tuple(
            replace(f, index=f.index + first) for part, first in zip(parts, firsts) for f in part.failures
        ),
    )


def _of_source(collection: "Collection", made: "Embedding") -> "Embedding":
    """The embedding with places counted in the file, and with the records that the reader could not use."""
    import numpy as np

    unread = [failure.index for failure in collection.failures]
    total = len(collection) + len(unread)
    if len(set(unread)) < len(unread) or any(not 0 <= place < total for place in unread):
        return replace(made, failures=(*collection.failures, *made.failures))
    places = np.setdiff1d(np.arange(total), unread)
    refused = [replace(failure, index=int(places[failure.index])) for failure in made.failures]
    failures = sorted([*collection.failures, *refused], key=lambda failure: failure.index)
    return replace(made, index=places[made.index], failures=tuple(failures))
