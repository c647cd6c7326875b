"""Molecules as tokens: the address is the place in the string, the content is the symbol.

    CCO   ->   <bos>  C  C  O  <eos>     at places 0 1 2 3 4; <bos> is given, <eos> is predicted

The vocabulary is learned from the training strings and sorted, so that the same data give the same ids on any
machine. A symbol that is not in it is an error that names it: nothing is ever mapped to "unknown".
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import torch
from rdkit import Chem

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure
from consilience.core.tokenizer import Ending, Tokenizer
from consilience.tokenizers.molecule_notation import Notation, longest_randomised
from consilience.tokenizers.molecule_options import MoleculeOptions
from consilience.tokenizers.molecule_patterns import Free, draw_lengths, read_pattern
from consilience.tokenizers.molecule_symbols import BOS, EOS, SPECIALS, split
from consilience.tokenizers.molecule_table import SymbolTable
from consilience.tokenizers.molecule_vocabulary import learn

MARGIN = 8
"""Tokens beyond the longest training molecule that a model which ends its samples itself may write."""


class MoleculeTokenizer(Tokenizer[Sequence[Any]]):
    """SMILES strings (or RDKit Mols) <-> symbol ids. Built by `fit` or `from_state`.

    Args:
        options: see `MoleculeOptions`.
        symbols: the vocabulary without the specials.
        length_counts: entry k = the number of training molecules of k tokens, begin and end included.
    """

    science: ClassVar[str] = "molecules"
    takes: ClassVar[str] = "a list of SMILES strings or RDKit Mols"

    def __init__(
        self, *, options: MoleculeOptions, symbols: Sequence[str], length_counts: Sequence[int]
    ) -> None:
        self.options = options
        self.table = SymbolTable((*SPECIALS, *symbols))
        self.length_counts = tuple(int(count) for count in length_counts)
        self._notation = Notation(language=options.notation, form=options.form)
        self._spec = TokenSpec(
            name=self.science,
            vocabulary=len(self.table),
            symbols=self.table.symbols,
            coordinates=1,
            position_encoding="rotary",
        )

    @property
    def spec(self) -> TokenSpec:
        """Categorical content; one float coordinate, the place in the string."""
        return self._spec

    @property
    def end_id(self) -> int:
        """The id of <eos>."""
        return SPECIALS.index(EOS)

    @property
    def marks(self) -> tuple[int, ...]:
        """The ids of <bos> and <eos>."""
        return tuple(range(len(SPECIALS)))

    @classmethod
    def fit(cls, records: Sequence[Any], **options: Any) -> Self:
        """Learn vocabulary and lengths. Molecules that cannot be used are passed over; `check` names them."""
        config = MoleculeOptions.build(options)
        symbols, length_counts = learn(_listed(records), config)
        return cls(options=config, symbols=symbols, length_counts=length_counts)

    def encode(self, records: Sequence[Any], *, generator: torch.Generator | None = None) -> TokenBatch:
        """Tokens of the records: ids (B, N), positions (B, N, 1), given (B, N) True at <bos>.

        Raises:
            UnreadableRecordError: for the first record that is not a molecule, that has an unknown symbol, or
                that is longer than `max_length`.
        """
        texts, refused = self._write(_listed(records), generator)
        if refused:
            raise UnreadableRecordError(*min(refused.items()))
        try:
            flat, counts = self.table.encode(texts)
        except ConsilienceError as error:
            raise UnreadableRecordError(*min(self.table.refusals(texts).items())) from error
        for row in self._too_long(counts):
            raise UnreadableRecordError(int(row), self._length_reason(counts[row]))
        return self._batch(flat, counts).validate(self._spec)

    def is_record(self, record: Any) -> bool:
        """A string, or an RDKit Mol."""
        return isinstance(record, str | Chem.Mol)

    def decode(self, tokens: TokenBatch) -> list[str]:
        """SMILES strings: symbols up to the first <eos>, joined. They need not be valid molecules."""
        assert tokens.ids is not None, "molecule tokens have ids"
        names = ["" if symbol in SPECIALS else symbol for symbol in self.table.symbols]
        strings = []
        for row, length in zip(tokens.ids.tolist(), tokens.length.tolist()):
            row = row[:length]
            end = row.index(self.end_id) if self.end_id in row else length
            strings.append(self._notation.read("".join([names[symbol] for symbol in row[:end]])))
        return strings

    def lengths(self, records: Sequence[Any]) -> np.ndarray:
        """(n,) int64: tokens of each record; an upper estimate for the randomised form.

        Records that `encode` would refuse count as 2 tokens.
        """
        texts, _ = self._notation.write(_listed(records))
        try:
            counts = self.table.encode(texts)[1]
        except ConsilienceError:
            bad = self.table.refusals(texts)
            texts = ["" if place in bad else text for place, text in enumerate(texts)]
            counts = np.array([len(split(text)) for text in texts], np.int64)
        if self.options.form == "randomised":
            counts = np.where(counts > 0, longest_randomised(texts, counts), 0)
            if self.options.max_length is not None:
                counts = np.minimum(counts, self.options.max_length - 2)
        return counts + 2

    def check(self, records: Sequence[Any]) -> list[Failure]:
        """The records that `encode` would refuse, each with the reason."""
        texts, refused = self._notation.write(_listed(records))
        written = [place for place in range(len(texts)) if place not in refused]
        unknown = self.table.refusals([texts[place] for place in written])
        refused |= {written[row]: reason for row, reason in unknown.items()}
        known = [place for row, place in enumerate(written) if row not in unknown]
        counts = self.table.encode([texts[place] for place in known])[1]
        refused |= {known[row]: self._length_reason(counts[row]) for row in self._too_long(counts)}
        return [Failure(index=place, id="", reason=reason) for place, reason in sorted(refused.items())]

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n samples that hold <bos> and room for symbols.

        For `next-token`, whose samples end themselves, all have the longest training length and a margin of
        8; for others the lengths are drawn from the training lengths.
        """
        longest = len(self.length_counts) - 1
        if open_end:
            room = min(longest + MARGIN, self.options.max_length or longest + MARGIN)
            length = torch.full((n,), room, dtype=torch.int64)
        else:
            share = torch.tensor(self.length_counts, dtype=torch.float64)
            length = (
                torch.multinomial(share, n, replacement=True, generator=generator) if n else share.long()[:0]
            )
        return self._empty(length).validate(self._spec)

    def pattern(
        self, text: str, n: int, *, generator: torch.Generator, ending: Ending
    ) -> tuple[TokenBatch, torch.Tensor]:
        """n samples that keep the symbols of a pattern; see `molecule_patterns`.

        Raises:
            ConsilienceError: for a string that is no pattern, an unknown symbol, lengths that cannot be, or an open
                ending of anything but a beginning with one `*`.
        """
        pattern = read_pattern(text)
        for symbol in (symbol for part in pattern.parts if not isinstance(part, Free) for symbol in part):
            if symbol not in self.table.index:
                raise ConsilienceError(
                    f"pattern {text!r}: the model knows no symbol {symbol!r} ({self.options.notation})"
                )
        if ending != "kept" and not pattern.is_beginning:
            raise ConsilienceError(
                f"pattern {text!r} needs a model that looks both ways (any-order, masked, masked-diffusion); this one "
                "looks back only, and goes on from a beginning with one * of any length after it, as in 'CCO*'"
            )
        limit = self.options.max_length
        if ending == "open":
            room = max(len(self.length_counts) - 1, pattern.kept + 3) + MARGIN
            extra = torch.full((n, 1), min(room, limit or room) - pattern.kept - 2)
            if n and int(extra[0, 0]) < 1:
                raise ConsilienceError(
                    f"pattern {text!r} leaves no room within max_length={limit}: shorten it"
                )
        else:
            extra = draw_lengths(pattern, n, self.length_counts, limit, generator)
        tokens = self._empty(extra.sum(1) + pattern.kept + 2)
        hidden = torch.zeros_like(tokens.real)
        assert tokens.ids is not None
        for row, lengths in enumerate(extra.tolist()):
            place, free = 1, iter(lengths)
            for part in pattern.parts:
                size = next(free) if isinstance(part, Free) else len(part)
                if isinstance(part, Free):
                    hidden[row, place : place + size] = True
                else:
                    kept = [self.table.index[symbol] for symbol in part]
                    tokens.ids[row, place : place + size] = torch.tensor(kept)
                place += size
            if ending == "kept":
                tokens.ids[row, place] = self.end_id
            else:
                hidden[row, place] = True
        return tokens.validate(self._spec), hidden

    def describe(self, record: Any) -> str:
        """The molecule's string, its tokens in order and their ids."""
        tokens = self.encode([record])
        assert tokens.ids is not None
        texts, _ = self._notation.write([record])
        symbols = [self.table.symbols[symbol] for symbol in tokens.ids[0].tolist()]
        widths = [max(len(symbol), len(str(k))) for k, symbol in enumerate(symbols)]
        lines = [
            f"{self.options.form} {self.options.notation.upper()}: {texts[0]}",
            f"{len(symbols)} tokens, vocabulary {len(self.table)}; {BOS} is given, the rest is predicted",
        ]
        for name, row in (
            ("symbol", symbols),
            ("place", [str(k) for k in range(len(symbols))]),
        ):
            lines.append(f"{name:>6}  " + " ".join(f"{text:>{width}}" for text, width in zip(row, widths)))
        return "\n".join(lines)

    def state(self) -> dict[str, Any]:
        """Options, symbols and the histogram of training lengths."""
        return {
            "options": asdict(self.options),
            "symbols": list(self.table.symbols[len(SPECIALS) :]),
            "length_counts": list(self.length_counts),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`; raises ConsilienceError when parts are missing."""
        missing = {"options", "symbols", "length_counts"} - set(state)
        if missing:
            raise ConsilienceError(f"molecules: the tokenizer state lacks {', '.join(sorted(missing))}")
        return cls(
            options=MoleculeOptions.build(state["options"]),
            symbols=state["symbols"],
            length_counts=state["length_counts"],
        )

    def _batch(self, flat: np.ndarray, counts: np.ndarray) -> TokenBatch:
        """A padded batch from symbols end to end. flat: (T,) int32; counts: (B,) int64."""
        tokens = self._empty(torch.from_numpy(counts + 2))
        assert tokens.ids is not None
        ids, rows = tokens.ids.numpy(), np.arange(len(counts))
        column = np.arange(tokens.width)[None, :]
        ids[(column > 0) & (column <= counts[:, None])] = flat
        ids[rows, counts + 1] = self.end_id
        return tokens

    def _empty(self, length: torch.Tensor) -> TokenBatch:
        """Tokens with <bos> given and nothing after it. length: (B,) int64."""
        width = int(length.max()) if len(length) else 1
        place = torch.arange(width)
        given = torch.zeros(len(length), width, dtype=torch.bool)
        given[:, 0] = True
        return TokenBatch(
            length=length,
            ids=torch.zeros(len(length), width, dtype=torch.int64),
            positions=(place * (place < length[:, None])).float()[:, :, None],
            given=given,
        )

    def _write(
        self, records: Sequence[Any], generator: torch.Generator | None
    ) -> tuple[list[str], dict[int, str]]:
        """Strings of the records; a random string that does not fit gives way to the canonical one.

        Another atom order may need more parentheses than `max_length` has room for, or (in SELFIES) a symbol
        that training did not show; a batch must not fail for that.
        """
        texts, refused = self._notation.write(records, generator)
        if self.options.form == "randomised" and generator is not None:
            rows = [row for row, text in enumerate(texts) if not self._fits(text)]
            plain, unreadable = self._notation.write([records[row] for row in rows])
            for row, text in zip(rows, plain):
                texts[row] = text
            refused = {rows[place]: reason for place, reason in unreadable.items()}
        return texts, refused

    def _fits(self, text: str) -> bool:
        """Whether every symbol is known and there is room for all."""
        symbols = split(text)
        room = (self.options.max_length or len(symbols) + 2) - 2
        return 0 < len(symbols) <= room and all(symbol in self.table.index for symbol in symbols)

    def _too_long(self, counts: np.ndarray) -> np.ndarray:
        """Rows with more symbols than `max_length` allows. counts: (n,) int64."""
        limit = self.options.max_length
        return np.flatnonzero(counts + 2 > limit) if limit is not None else np.zeros(0, np.int64)

    def _length_reason(self, symbols: int) -> str:
        return (
            f"the molecule has {int(symbols) + 2} tokens, begin and end included, more than max_length="
            f"{self.options.max_length}; raise max_length or leave the molecule out"
        )


def _listed(records: Sequence[Any]) -> Sequence[Any]:
    """The records, unless they are one string, which would be read letter by letter."""
    if isinstance(records, str):
        raise ConsilienceError(f"molecules: pass a list of SMILES, not one string: [{records!r:.60}]")
    return records
