"""Write the tokens of a collection once, for training that is not to wait for a tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience import registry
from consilience.commands.console import Interrupted, bar, say
from consilience.commands.models import find_data
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.token_cache import TokenCache

MIB = 2**20


def tokenize(
    domain: str,
    *,
    out: str | Path,
    data: str | Path | None = None,
    draws: int | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    read_options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    parts: Sequence[float] | None = None,
    seed: int = 0,
    shard_mib: int = 256,
    progress: bool = False,
) -> "TokenCache":
    """Write the tokens of a collection to a folder that `train --data FOLDER` reads through memory maps.

    What a tokenizer draws in training (matched zeros and the choice of genes of cells, randomised SMILES, rotations
    of points) is kept by writing every training record several times: epoch e of a run reads draw e mod K. K draws
    take K times the space and the time of one, about 5 bytes a token for molecules, 6 for cells, 18 for points and
    260 for spectra in patches of 32 pixels. A run of more than K epochs sees the same draws again.

    Args:
        domain: the science.
        out: the folder of the cache; new, empty, or with a cache that was cut off, which then goes on.
        data: a file, or the name of a fetched data set; the bundled data where left out.
        draws: K; 0 = one tokenization as at inference, without what training draws. Default: 0 where the
            tokenizer draws nothing (canonical SMILES, spectra), which loses nothing, else 8.
        tokenizer_options: of the tokenizer, such as --tokenizer-options.max_length 96.
        read_options: of the reader of the file.
        limit: use at most this many records, drawn with a fixed seed.
        parts: shares of train, validation and test, such as 0.98 0.01 0.01; default: 0.7 0.1 0.2. A group (a
            scaffold, an object) stays in one part.
        seed: of the draws.
        shard_mib: size of a file in MiB; about three times as much is held in memory while writing.
        progress: show a bar with the rate and the time left.

    Returns:
        The cache: its plan with the fitted tokenizer, its shards and the columns of its records.
    """
    from consilience.domains.cached import tokenize_collection

    if limit is not None and limit < 1:
        raise ConsilienceError(f"limit must be at least 1 record, not {limit}")
    if shard_mib < 1:
        raise ConsilienceError(f"shard_mib must be at least 1, not {shard_mib}")
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConsilienceError(f"{folder} is a file: name a folder")
    with bar("records", shown=progress) as shown:
        task = shown.add_task("tokenizing", total=None, note="")
        return tokenize_collection(
            registry.domain(domain),
            folder,
            data=None if data is None else find_data(data),
            read=read_options,
            tokenizer=tokenizer_options,
            limit=limit,
            parts=parts,
            draws=draws,
            seed=seed,
            sizes={"shard_bytes": shard_mib * MIB},
            on_records=lambda done, total: shown.update(task, completed=done, total=total),
        )


def new_parser() -> CommandParser:
    """The options of `consilience tokenize`."""
    parser = CommandParser("tokenize", tokenize, "DOMAIN --out FOLDER [--data FILE] [options]")
    parser.option("domain", type=str, metavar="DOMAIN")
    parser.option("--out", type=str, required=True, metavar="FOLDER")
    parser.option("--data", type=str | None, metavar="FILE")
    parser.option("--draws", type=int | None, metavar="K")
    parser.option("--tokenizer-options", type=dict[str, Any], default={})
    parser.option("--read-options", type=dict[str, Any], default={})
    parser.option("--limit", type=int | None, metavar="N")
    parser.option("--parts", nargs=3, type=float, metavar=("TRAIN", "VALIDATION", "TEST"))
    parser.option("--seed", type=int)
    parser.option("--shard-mib", type=int)
    return parser


def run(options: "Namespace") -> None:
    """`consilience tokenize`."""
    try:
        cache = tokenize(**options.as_dict(), progress=True)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what is in {options.out} is kept: the same command goes on from there"
        ) from None
    plan = cache.plan
    parts = ", ".join(f"{n:,} {name}" for name, n in plan.parts.items())
    kept = f"{plan.draws} draws of the training records" if plan.draws else "nothing is drawn"
    say(
        f"{options.out}: {parts} records; {kept}; {cache.tokens:,} tokens in {cache.size_bytes / MIB:,.1f} MiB; "
        f"next: consilience train {options.domain} --data {options.out} --out RUN"
    )
