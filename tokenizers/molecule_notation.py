"""Notation: the string a molecule is written as before it is cut into symbols, and the way back.

A record is a SMILES string or an RDKit Mol. It can be written as it was given, as RDKit's canonical SMILES
(one string per molecule, whoever wrote it), or with its atoms in a random order (one molecule, many strings:
Arus-Pous et al. 2019, doi:10.1186/s13321-019-0393-0); each of them as SMILES or as SELFIES (Krenn et al.
2020, doi:10.1088/2632-2153/aba947), whose every string of symbols stands for a molecule.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import selfies
import torch
from rdkit import Chem, rdBase

from consilience.core.errors import ConsilienceError

Form = Literal["as-given", "canonical", "randomised"]
Language = Literal["smiles", "selfies"]

LONGEST = 5_000
"""Characters of a SMILES. RDKit goes down a molecule by recursion, and ends the process where the stack does."""
MEMORY = 200_000
"""Strings whose rewriting is remembered (about 50 MB): later epochs do not ask RDKit again."""


def parse(smiles: str) -> Chem.Mol:
    """RDKit's molecule of a SMILES; white space around it is ignored.

    Raises:
        ConsilienceError: with RDKit's own reason (syntax, valence, aromaticity).
    """
    if not smiles.strip():
        raise ConsilienceError("the SMILES is empty; leave the molecule out")
    if len(smiles) > LONGEST:
        raise ConsilienceError(
            f"{smiles[:20]!r}... has {len(smiles):,} characters; molecules of at most {LONGEST:,} are read"
        )
    if len(smiles.split()) > 1:
        # RDKit would take what follows for a name or an extension and lose it.
        raise ConsilienceError(f"{smiles!r} goes on after white space; put only the SMILES there")
    foreign = next((letter for letter in smiles.strip() if not "!" <= letter <= "~"), None)
    if foreign is not None:  # RDKit skips it: two Cyrillic letters and an O are water
        name = unicodedata.name(foreign, "unnamed")
        raise ConsilienceError(
            f"{smiles!r} has the character U+{ord(foreign):04X} ({name}), which no SMILES has; write it anew"
        )
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles.strip())
        if mol is not None and mol.GetNumAtoms():
            return mol
        raw = Chem.MolFromSmiles(smiles, sanitize=False)
        problems = Chem.DetectChemistryProblems(raw) if raw is not None else ()
    reason = problems[0].Message() if problems else "not the syntax of SMILES"
    raise ConsilienceError(f"RDKit cannot read {smiles!r}: {reason}; correct it or leave the molecule out")


def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES of a SMILES; raises ConsilienceError where `parse` does."""
    return str(Chem.MolToSmiles(parse(smiles)))


def to_selfies(smiles: str) -> str:
    """SELFIES of a SMILES, kept only if it leads back to the same molecule.

    Raises:
        ConsilienceError: when SELFIES cannot write the molecule (wildcards, valences beyond its rules), or
            when the way back gives another canonical SMILES.
    """
    try:
        text = str(selfies.encoder(smiles))
        back = canonical(str(selfies.decoder(text)))
    except (selfies.EncoderError, selfies.DecoderError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ConsilienceError(
            f"SELFIES cannot write {smiles!r}: {reason}; use notation='smiles' or leave the molecule out"
        ) from error
    if back != canonical(smiles):
        raise ConsilienceError(
            f"SELFIES turns {smiles!r} into another molecule, {back!r}; use notation='smiles' or leave it out"
        )
    return text


class Notation:
    """Writes records as strings of one language and form.

    Args:
        language: smiles or selfies.
        form: as-given, canonical, or randomised (which is canonical unless a generator is passed).
    """

    def __init__(self, *, language: Language, form: Form) -> None:
        self.language: Language = language
        self.form: Form = form
        self._memory: dict[str, str] = {}

    def write(
        self, records: Sequence[Any], generator: torch.Generator | None = None
    ) -> tuple[list[str], dict[int, str]]:
        """The strings of all records, and place -> reason for those that have none (their string is "")."""
        refused: dict[int, str] = {}
        random = self.form == "randomised" and generator is not None
        if set(map(type, records)) <= {str}:
            if self.form == "as-given" and self.language == "smiles":
                return list(records), refused
            if not random:
                remembered = [self._memory.get(record) for record in records]
                if None not in remembered:
                    return [text for text in remembered if text is not None], refused
        seeds = torch.randint(1, 2**31 - 1, (len(records),), generator=generator).tolist() if random else None
        texts = []
        for place, record in enumerate(records):
            try:
                texts.append(self._write_one(record, seeds[place] if seeds else None))
            except ConsilienceError as error:
                refused[place] = str(error)
                texts.append("")
        return texts, refused

    def read(self, text: str) -> str:
        """The SMILES of a string of this language: a SMILES as it is, a SELFIES through canonical SMILES.

        What is no molecule stays a string that RDKit refuses, for the caller to count.
        """
        if self.language == "smiles":
            return text
        try:
            return canonical(str(selfies.decoder(text)))
        except (selfies.DecoderError, ConsilienceError):
            return text

    def _write_one(self, record: Any, seed: int | None) -> str:
        if isinstance(record, Chem.Mol):
            record = str(Chem.MolToSmiles(record))
        if not isinstance(record, str):
            raise ConsilienceError(
                f"a molecule is a SMILES string or an RDKit Mol, not {type(record).__name__} "
                f"({record!r:.40}); convert it first"
            )
        if seed is not None:
            smiles = str(Chem.MolToRandomSmilesVect(parse(record), 1, randomSeed=seed)[0])
            return to_selfies(smiles) if self.language == "selfies" else smiles
        text = self._memory.get(record)
        if text is None:
            text = str(record) if self.form == "as-given" else canonical(record)
            text = to_selfies(text) if self.language == "selfies" else text
            if len(self._memory) < MEMORY:
                self._memory[record] = text
        return text


def longest_randomised(texts: Sequence[str], counts: np.ndarray) -> np.ndarray:
    """An upper bound of the symbols of a SMILES in any atom order, from its canonical string.

    Atoms, bonds and ring digits are the same in every order. A branch costs two parentheses; an order has at
    most one branch more per ring than the canonical one, and two more per fragment (where a chain is entered
    in its middle). The marks of a double bond (`/`) may double. For SELFIES this is a rough estimate only.

    Args:
        texts: n canonical SMILES.
        counts: (n,) int64, their symbols.

    Returns:
        (n,) int64.
    """
    extra = [
        2 * _ring_bonds(text) + 4 * (text.count(".") + 1) + 2 * (text.count("/") + text.count("\\"))
        for text in texts
    ]
    return counts + np.array(extra, np.int64).reshape(-1)


def _ring_bonds(text: str) -> int:
    """At most this many ring bonds: half of the digits of the string (those in brackets count too)."""
    return (sum(map(text.count, "0123456789")) + 1) // 2
