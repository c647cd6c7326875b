"""What a tokenizer of molecules learns: the symbols of the training strings and how long they are."""

from collections import Counter
from collections.abc import Sequence

import selfies
import torch

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.molecule_notation import Language, Notation
from consilience.tokenizers.molecule_options import MoleculeOptions
from consilience.tokenizers.molecule_symbols import GRAMMAR, SMILES_SYMBOLS, mirrored, split


def learn(records: Sequence[object], options: MoleculeOptions) -> tuple[list[str], list[int]]:
    """The sorted symbols, specials apart, and entry k = the number of molecules of k tokens.

    Molecules that cannot be used (not readable, too long) are passed over.

    Raises:
        ConsilienceError: when none can be used, with the reason for the first.
    """
    notation = Notation(language=options.notation, form=options.form)
    texts, refused = notation.write(records)
    symbols, lengths = _count(texts, options.max_length)
    if options.form == "randomised":
        # Any atom order of these must be readable later; lengths are those of one random order each.
        random, _ = notation.write(records, torch.Generator().manual_seed(0))
        more, lengths = _count(random, options.max_length)
        symbols = {other for symbol in symbols | more for other in mirrored(symbol)}
        symbols |= set(GRAMMAR) if options.notation == "smiles" else set()
    if not lengths:
        reason = (
            f"the first is refused: {min(refused.items())[1]}" if refused else "all are empty or too long"
        )
        raise ConsilienceError(
            f"molecules: none of the {len(records)} molecules to fit on is usable; {reason}"
        )
    if options.base_symbols:
        symbols |= base_symbols(options.notation)
    return sorted(symbols), [lengths.get(k, 0) for k in range(max(lengths) + 1)]


def base_symbols(notation: Language) -> set[str]:
    """Common symbols of a notation; for SELFIES the library's own robust alphabet and the dot."""
    if notation == "smiles":
        return set(SMILES_SYMBOLS)
    return {*selfies.get_semantic_robust_alphabet(), "."}


def _count(texts: Sequence[str], limit: int | None) -> tuple[set[str], Counter[int]]:
    """Symbols and token counts (begin and end included) of the strings that are whole and not too long."""
    symbols: set[str] = set()
    lengths: Counter[int] = Counter()
    for text in texts:
        try:
            found = split(text)
        except ConsilienceError:
            continue
        if found and (limit is None or len(found) + 2 <= limit):
            symbols.update(found)
            lengths[len(found) + 2] += 1
    return symbols, lengths
