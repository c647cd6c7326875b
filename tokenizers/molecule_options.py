"""Options of the tokenizer of molecules."""

from dataclasses import dataclass, fields
from typing import Any, Self

from consilience.core.errors import ConsilienceError
from consilience.core.options import check_types
from consilience.tokenizers.molecule_notation import Form, Language


@dataclass(frozen=True, kw_only=True)
class MoleculeOptions:
    """How molecules become strings.

    Args:
        notation: smiles, or selfies (whose every string is a molecule; some molecules cannot be written).
        form: the string of a molecule. canonical: RDKit's, the same whoever wrote the input. as-given: the
            input, unchecked by RDKit and about 50 times faster. randomised: a new atom order each time in
            training (augmentation), canonical where no generator is passed.
        max_length: longest molecule in tokens, begin and end included; longer ones are refused, never cut.
            None: no limit.
        base_symbols: hold common symbols that the training set lacks, so that ordinary molecules can be read.
    """

    notation: Language = "smiles"
    form: Form = "canonical"
    max_length: int | None = None
    base_symbols: bool = True

    def __post_init__(self) -> None:
        check_types(self, "molecules")
        for name, value, known in (
            ("notation", self.notation, ("smiles", "selfies")),
            ("form", self.form, ("as-given", "canonical", "randomised")),
        ):
            if value not in known:
                raise ConsilienceError(f"molecules: {name} must be one of {', '.join(known)}, not {value!r}")
        if self.max_length is not None and self.max_length < 3:
            raise ConsilienceError(
                f"molecules: max_length={self.max_length} is too short; it counts begin, symbols and end, so "
                "make it 3 or more"
            )

    @classmethod
    def build(cls, options: dict[str, Any]) -> Self:
        """Options from a dictionary; an unknown name raises ConsilienceError with the known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConsilienceError(
                    f"molecules: unknown tokenizer option {name!r}; known: {', '.join(known)}"
                )
        return cls(**options)
