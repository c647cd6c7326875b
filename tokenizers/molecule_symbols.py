"""Symbols of molecule strings: how a SMILES (or SELFIES) is cut, and the symbols every vocabulary holds.

One regular expression is the whole grammar. It takes atoms whole (`Cl`, `Br`, `[nH]`, `[C@@H]`), ring bonds
whole (`%10`, `%(123)`), the arrows of reactions and dative bonds whole (`>>`, `->`, `<-`), and one character
for everything else that may stand in a SMILES. SELFIES is bracket symbols and dots, so the same rule cuts it.
"""

import re

from consilience.core.errors import ConsilienceError

BOS = "<bos>"
EOS = "<eos>"
SPECIALS = (BOS, EOS)

SYMBOL = re.compile(r"\[[^\[\]\n]*\]|Cl|Br|%\d\d|%\(\d+\)|>>|->|<-|[BCNOPSFIbcnops*\-=#$:~/\\.()0-9>]")

_ORGANIC = ["B", "C", "N", "O", "P", "S", "F", "Cl", "Br", "I", "b", "c", "n", "o", "p", "s", "*"]
_BONDS = ["-", "=", "#", "$", ":", "~", "/", "\\", ".", "(", ")", ">", ">>", "->", "<-"]
_RINGS = [str(digit) for digit in range(10)] + [f"%{number}" for number in range(10, 30)]
_CHIRAL = "[C@] [C@@] [C@H] [C@@H] [N@+] [N@@+] [S@] [S@@] [S@+] [S@@+] [P@] [P@@] [P@H] [P@@H] [Si@] [Si@@]"
_CHARGED = (
    "[N+] [N-] [NH+] [NH2+] [NH3+] [NH-] [NH4+] [nH] [n+] [n-] [nH+] [O-] [O+] [OH+] [OH-] [o+] [S-] [S+] "
    "[SH+] [s+] [C-] [C+] [CH-] [CH2-] [CH+] [CH2+] [c-] [c+] [cH-] [P+] [PH+] [P-] [B-] [BH-] [BH2-] [BH3-] "
    "[Se+] [I+] [H+] [F-] [Cl-] [Br-] [I-] [Li+] [Na+] [K+] [Ag+] [Mg+2] [Ca+2] [Zn+2] [Cu+2] [Fe+2] "
    "[Fe+3] [Al+3]"
)
_OTHER = (
    "[H] [2H] [3H] [11C] [13C] [14C] [13CH3] [15N] [18F] [C] [CH] [CH2] [CH3] [N] [NH] [NH2] [O] [OH] [S] "
    "[SH] [PH] [PH2] [BH] [Si] [SiH] [SiH2] [SiH3] [Ge] [As] [AsH] [Se] [se] [SeH] [Te] [te] [Sb] [Bi] [Sn] "
    "[SnH] [Pb] [Hg] [Li] [Na] [K] [Mg] [Ca] [Al] [Zn] [Cd] [Cu] [Ag] [Au] [Fe] [Co] [Ni] [Mn] [Cr] [Ti] "
    "[Pt] [Pd] [Ru]"
)

GRAMMAR: tuple[str, ...] = (*_BONDS, *_RINGS)
"""Symbols that are no atoms: another atom order may need any of them."""

SMILES_SYMBOLS: tuple[str, ...] = (
    *_ORGANIC,
    *GRAMMAR,
    *_CHIRAL.split(),
    *_CHARGED.split(),
    *_OTHER.split(),
)
"""Common SMILES symbols: in every vocabulary unless `base_symbols=False`, so that an ordinary molecule is
never refused because the training set was small. A symbol that training never showed has an untrained
embedding; it is readable, not understood."""

# The permutation classes of chirality in the SMILES grammar: writing the atoms in another order may turn any
# member of a class into any other. Tetrahedral and allene-like centres have two, and so on.
_CLASSES = {"TH": 2, "AL": 2, "SP": 3, "TB": 20, "OH": 30}
_CHIRALITY = re.compile(r"@@?(?:(TH|AL|SP|TB|OH)\d+)?")


def split(text: str) -> list[str]:
    """Cut a string into its symbols; joined they are the string again.

    Raises:
        ConsilienceError: at the first character that belongs to no symbol, with its position (from 0).
    """
    symbols = SYMBOL.findall(text)
    if "".join(symbols) == text:
        return symbols
    position = 0
    while match := SYMBOL.match(text, position):
        position = match.end()
    what = "an unclosed bracket" if text[position] == "[" else f"{text[position]!r}, which starts no symbol"
    raise ConsilienceError(
        f"{text!r} has {what} at position {position}; correct it or leave the molecule out"
    )


def mirrored(symbol: str) -> list[str]:
    """The symbols an atom may be written as when the atoms of its molecule come in another order.

    A bracket atom states isotope, element, hydrogens and charge, which no order changes, and a chirality
    mark, which it does: `[C@H]` may become `[C@@H]`. Other symbols stay what they are.
    """
    match = _CHIRALITY.search(symbol) if symbol.startswith("[") else None
    if match is None:
        return [symbol]
    before, after, named = symbol[: match.start()], symbol[match.end() :], match.group(1)
    marks = ["@", "@@"] if named is None else [f"@{named}{k}" for k in range(1, _CLASSES[named] + 1)]
    return [f"{before}{mark}{after}" for mark in marks]
