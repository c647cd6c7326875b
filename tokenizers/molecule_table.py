"""SymbolTable: strings to symbol ids and back, over whole chunks of molecules at once.

Nearly every symbol of a SMILES is one byte, so a chunk of strings is joined to one array of bytes and cut by
array operations: a look-up table for single bytes, a few corrections for `Cl`, `Br` and `%10`, and a
dictionary for bracket atoms. The result is spelled out again and compared with the input, byte by byte, so
nothing is lost in silence. Strings with rare symbols (`%(123)`, arrows) and every error go through the
regular expression of `molecule_symbols`, which is the reference for the fast way.
"""

import re
from collections.abc import Sequence

import numpy as np

from consilience.core.errors import ConsilienceError
from consilience.tokenizers.molecule_symbols import SPECIALS, split

CHUNK = 4096
"""Strings cut at once: the working arrays (about 150 kB each) stay in the processor's cache."""

_BRACKET = re.compile(rb"\[[^\]]*\]")
_RARE = re.compile(rb"[<>]|%\(")
_NEWLINE, _OPEN, _CLOSE, _PERCENT = b"\n[]%"


class SymbolTable:
    """A fixed list of symbols, with the look-ups that turn strings into ids.

    Args:
        symbols: V symbols, the specials first; the id of a symbol is its place.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self.index = {symbol: place for place, symbol in enumerate(self.symbols) if symbol not in SPECIALS}
        spelled = [b"" if symbol in SPECIALS else symbol.encode() for symbol in self.symbols]
        self._brackets = {text: self.index[text.decode()] for text in spelled if text.startswith(b"[")}
        self._single = np.full(256, -1, np.int32)
        for text in spelled:
            if len(text) == 1:
                self._single[text[0]] = self.index[text.decode()]
        self._ring = np.array([self.index.get(f"%{number:02d}", -1) for number in range(100)], np.int32)
        # The spelling of all symbols end to end, to write ids out as bytes without a loop.
        self._spelling = np.frombuffer(b"".join(spelled), np.uint8)
        self._width = np.array([len(text) for text in spelled], np.int64)
        self._offset = np.cumsum(self._width) - self._width

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Symbol ids of all strings end to end, and how many each string has.

        Returns:
            ids: (T,) int32. counts: (n,) int64, which sum to T.

        Raises:
            ConsilienceError: when a string does not fit; `refusals` says which and why.
        """
        parts = [self._encode_chunk(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
        if not parts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([counts for _, counts in parts])

    def refusals(self, texts: Sequence[str]) -> dict[int, str]:
        """Place -> reason for every string that `encode` would refuse."""
        found: dict[int, str] = {}
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            try:
                self._encode_chunk(chunk)
            except ConsilienceError:
                for place, text in enumerate(chunk, start):
                    try:
                        self._encode_one(text)
                    except ConsilienceError as error:
                        found[place] = str(error)
        return found

    def spell(self, ids: np.ndarray) -> bytes:
        """The bytes that these ids spell; specials spell nothing. ids: (T,) integers."""
        return self._spell(ids).tobytes()

    def _spell(self, ids: np.ndarray) -> np.ndarray:
        width = self._width[ids]
        ends = np.cumsum(width)
        total = int(ends[-1]) if len(ends) else 0
        return self._spelling[np.repeat(self._offset[ids] - ends + width, width) + np.arange(total)]

    def _encode_chunk(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        fast = self._encode_bytes(texts)
        if fast is not None:
            return fast
        rows = [self._encode_one(text) for text in texts]
        return np.concatenate(rows), np.array([len(row) for row in rows], np.int64)

    def _encode_one(self, text: str) -> np.ndarray:
        """The reference: the ids of one string, through the regular expression."""
        if not text:
            raise ConsilienceError("the string is empty; leave the molecule out")
        symbols = split(text)
        for place, symbol in enumerate(symbols):
            if symbol not in self.index:
                position = len("".join(symbols[:place]))
                raise ConsilienceError(
                    f"{text!r} has the symbol {symbol!r} at position {position}, which is not among the "
                    f"{len(self)} symbols of this tokenizer; fit the tokenizer on data that holds it, or "
                    "leave the molecule out"
                )
        return np.array([self.index[symbol] for symbol in symbols], np.int32)

    def _encode_bytes(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """The fast way; None where the strings need the slow one, be it for a rare symbol or an error."""
        data = "\n".join(texts).encode(errors="replace")
        if _RARE.search(data):
            return None
        codes = np.frombuffer(data, np.uint8)
        breaks = np.flatnonzero(codes == _NEWLINE)
        if len(breaks) != len(texts) - 1:
            return None
        ids = self._single[codes]
        start = codes != _NEWLINE
        if not (
            self._mark_brackets(data, codes, ids, start)
            and self._mark_pairs(codes, ids, start)
            and self._mark_rings(codes, ids, start)
        ):
            return None
        flat = ids[start]
        if flat.size == 0 or int(flat.min()) < 0:
            return None
        edges = np.concatenate([[-1], breaks, [len(codes)]])
        counts = np.diff(np.concatenate([[0], np.cumsum(start)])[np.minimum(edges + 1, len(codes))])
        if int(counts.min()) == 0 or not np.array_equal(self._spell(flat), codes[codes != _NEWLINE]):
            return None
        return flat, counts

    def _mark_brackets(self, data: bytes, codes: np.ndarray, ids: np.ndarray, start: np.ndarray) -> bool:
        """Give bracket atoms their id at the opening bracket; False when brackets or atoms are not known."""
        opened, closed = np.flatnonzero(codes == _OPEN), np.flatnonzero(codes == _CLOSE)
        if len(opened) == 0 == len(closed):
            return True
        atoms = _BRACKET.findall(data)
        if not len(opened) == len(closed) == len(atoms) or bool((opened > closed).any()):
            return False
        found = np.array([self._brackets.get(atom, -1) for atom in atoms], np.int32)
        step = np.zeros(len(codes) + 1, np.int8)
        step[opened + 1] += 1
        step[closed + 1] -= 1
        start &= np.cumsum(step, dtype=np.int8)[:-1] == 0
        ids[opened] = found
        return int(found.min()) >= 0

    def _mark_pairs(self, codes: np.ndarray, ids: np.ndarray, start: np.ndarray) -> bool:
        """Give `Cl` and `Br` their id at the first letter; elsewhere `l` and `r` are wrong."""
        for first, second, symbol in ((b"C", b"l", "Cl"), (b"B", b"r", "Br")):
            places = np.flatnonzero((codes == second[0]) & start)
            if len(places) == 0:
                continue
            if places[0] == 0 or bool((codes[places - 1] != first[0]).any()):
                return False
            start[places] = False
            ids[places - 1] = self.index.get(symbol, -1)
        return True

    def _mark_rings(self, codes: np.ndarray, ids: np.ndarray, start: np.ndarray) -> bool:
        """Give ring bonds of two digits their id at the percent sign."""
        places = np.flatnonzero((codes == _PERCENT) & start)
        if len(places) == 0:
            return True
        if places[-1] + 2 >= len(codes):
            return False
        tens, units = codes[places + 1].astype(np.int64) - 48, codes[places + 2].astype(np.int64) - 48
        if bool(((tens < 0) | (tens > 9) | (units < 0) | (units > 9)).any()):
            return False
        ids[places] = self._ring[10 * tens + units]
        start[places + 1] = False
        start[places + 2] = False
        return True
