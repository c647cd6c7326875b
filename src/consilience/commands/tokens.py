"""Show what the tokenizer of a science sees of a record."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience import registry
from consilience.commands.console import say
from consilience.commands.models import load, read_collection, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.pretrained import model_folder

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.records import Collection
    from consilience.domains.base import Domain

FITTED_ON = 500
"""Records that a tokenizer is fitted on when no model brings one."""


def tokens(
    domain: str,
    record: str | Path | None = None,
    *,
    row: int = 0,
    model: str | Path | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    read_options: Mapping[str, Any] | None = None,
) -> str:
    """Describe the tokens of one record.

    Args:
        domain: the science.
        record: a file, or a SMILES string for molecules; default: the bundled data.
        row: which record of the file, from 0, unreadable ones counted.
        model: the folder of a run whose tokenizer to use; default: one fitted on the first records of the file.
        tokenizer_options: of the tokenizer that is fitted, such as --tokenizer-options.view ranks.
        read_options: of the reader of the file.

    Returns:
        A few lines for a person.
    """
    from consilience.core.records import take_records

    science = registry.domain(domain)
    fitted = None
    if model is not None:
        network = load(model)
        science = science_of(network, model_folder(model), domain)
        fitted = network.tokenizers[science.name]
        if tokenizer_options:
            raise ConsilienceError("the tokenizer of a model has its options; leave out --tokenizer-options")
    if record is not None and _is_text(science, record):
        records: Any = [str(record)]
        place, where = 0, ""
    else:
        collection = read_collection(science, record, read_options)
        records, where = collection.records, f"{collection.source}: row {row} cannot be tokenized: "
        place = _place_of(collection, row)
    if fitted is None:
        first = take_records(records, range(min(len(records), FITTED_ON)))
        fitted = science.tokenizer.fit(first, **(tokenizer_options or {}))
    one = take_records(records, [place])
    refused = fitted.check(one)
    if refused:
        raise ConsilienceError(f"{where}{refused[0].reason}")
    return fitted.describe(one[0])


def _place_of(collection: "Collection", row: int) -> int:
    """Where a row of the source stands among the readable records; ConsilienceError for one that is none of them."""
    from consilience.domains.pieces import places_in_source

    places = places_in_source(collection)
    total = len(collection) + (0 if places is None else len(collection.failures))
    if not 0 <= row < total:
        raise ConsilienceError(f"row {row} does not exist: {collection.source} has rows 0 to {total - 1}")
    if places is None:  # the source counts in another way (files of a folder): readable records alone
        return row
    for failure in collection.failures:
        if failure.index == row:
            raise ConsilienceError(
                f"{collection.source}: row {row} ({failure.id}) cannot be read: {failure.reason}"
            )
    return int(places.searchsorted(row))


def _is_text(science: "Domain", record: str | Path) -> bool:
    """Whether an argument is the record itself: a string of a science whose records are strings, and no file."""
    written = science.text_records
    return written and not Path(record).exists() and not str(record).lower().endswith(science.suffixes)


def new_parser() -> CommandParser:
    """The options of `consilience tokens`."""
    parser = CommandParser("tokens", tokens, "DOMAIN [RECORD] [options]")
    parser.option("domain", type=str, metavar="DOMAIN")
    parser.option("record", nargs="?", type=str, metavar="RECORD")
    parser.option("--row", type=int)
    parser.option("--model", type=str | None, metavar="FOLDER")
    parser.option("--tokenizer-options", type=dict[str, Any], default={})
    parser.option("--read-options", type=dict[str, Any], default={})
    return parser


def run(options: "Namespace") -> None:
    """`consilience tokens`."""
    say(tokens(**options.as_dict()))
