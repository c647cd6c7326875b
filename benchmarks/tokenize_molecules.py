"""SMILES to tokens, beside Hugging Face's tokenizers (word level, split by the same regular expression) and `re`.

Default data: RDKit's bundled NCI molecules, canonical; `--data FILE` (MOSES' train.csv.gz, or any file of SMILES that
consilience reads).
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # figures are per core; read when the library is loaded

import torch
from harness import Report, installed, options, race

from consilience.core.batch import TokenBatch
from consilience.tokenizers.molecule_notation import canonical
from consilience.tokenizers.molecule_symbols import BOS, EOS, SYMBOL
from consilience.tokenizers.molecules import MoleculeTokenizer

BATCH, REACH = 512, 100_000
REWRITTEN = 2_000  # molecules that RDKit writes anew in the rows about notation


def load(path: str, n: int) -> tuple[list[str], str]:
    """n SMILES (repeated where there are fewer) and what they are."""
    if path:
        from consilience.domains.molecules.readers import read_table

        smiles = [text for text in read_table(Path(path)).smiles if text]
        name = Path(path).name
    else:
        from consilience.domains.molecules.data import bundled

        smiles, name = list(bundled().records), "RDKit's NCI molecules"
    found = (smiles * (n // len(smiles) + 1))[:n]
    return found, f"{min(n, len(smiles)):,} of {name}"


def encode_all(tokenizer: MoleculeTokenizer, smiles: Sequence[str], generator: Any = None) -> None:
    """Tokens in batches."""
    for start in range(0, len(smiles), BATCH):
        tokenizer.encode(smiles[start : start + BATCH], generator=generator)


def hugging_face(tokenizer: MoleculeTokenizer) -> Any:
    """Their tokenizer with our vocabulary, our regular expression, begin and end marks, and padding."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    index = {symbol: place for place, symbol in enumerate(tokenizer.table.symbols)}
    built = Tokenizer(models.WordLevel(vocab=index, unk_token=BOS))
    built.pre_tokenizer = pre_tokenizers.Split(Regex(SYMBOL.pattern), behavior="isolated")
    built.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, index[BOS]), (EOS, index[EOS])]
    )
    built.enable_padding(pad_id=0, pad_token=BOS)
    return built


def with_hugging_face(theirs: Any, smiles: Sequence[str]) -> list[torch.Tensor]:
    """Padded ids, a tensor a batch."""
    encode = getattr(theirs, "encode_batch_fast", theirs.encode_batch)  # the fast one leaves offsets out
    return [
        torch.tensor([found.ids for found in encode(list(smiles[start : start + BATCH]))])
        for start in range(0, len(smiles), BATCH)
    ]


def with_re(index: dict[str, int], smiles: Sequence[str]) -> list[torch.Tensor]:
    """Padded ids, a tensor a batch: `re.findall`, a dictionary, padding."""
    batches = []
    for start in range(0, len(smiles), BATCH):
        rows = [
            [index[BOS], *(index[symbol] for symbol in SYMBOL.findall(text)), index[EOS]]
            for text in smiles[start : start + BATCH]
        ]
        width = max(map(len, rows))
        batches.append(torch.tensor([row + [0] * (width - len(row)) for row in rows]))
    return batches


def check(tokenizer: MoleculeTokenizer, smiles: Sequence[str], theirs: Any) -> str:
    """Lossless for every molecule; two runs equal; the ids of both peers."""
    index = {symbol: place for place, symbol in enumerate(tokenizer.table.symbols)}
    references = [with_re(index, smiles)] + ([with_hugging_face(theirs, smiles)] if theirs else [])
    for number, start in enumerate(range(0, len(smiles), BATCH)):
        part = smiles[start : start + BATCH]
        tokens: TokenBatch = tokenizer.encode(part)
        again = tokenizer.encode(part)
        assert tokens.ids is not None and again.ids is not None
        assert tokenizer.decode(tokens) == list(part), "decode(encode(smiles)) is not the SMILES"
        assert torch.equal(tokens.ids, again.ids), "two runs differ"
        for reference in references:
            assert torch.equal(tokens.ids, reference[number]), "other ids than a peer"
    return f"all {len(smiles):,}: decode(encode) = SMILES; two runs equal; ids = peers'"


def main() -> None:
    """Measure, check, write the table."""
    chosen = options(__doc__, data="", molecules=0, rounds=0)
    torch.set_num_threads(1)
    n, rounds = (
        chosen.molecules or (8_000 if chosen.quick else 100_000),
        chosen.rounds or (3 if chosen.quick else 7),
    )
    smiles, what = load(chosen.data, n)
    tokenizer = MoleculeTokenizer.fit(smiles, form="as-given")
    report = Report(
        "tokenize_molecules",
        f"SMILES to tokens: {what}, {sum(map(len, smiles)) / n:.0f} characters each, one thread",
        ("work", "contender", "molecules/s", "times as long as ours", "checked"),
        packages=("tokenizers", "rdkit"),
        notes=[
            f"Reach: {REACH:,} molecules/s on one core, lossless.",
            f"Padded ids in batches of {BATCH} for every contender; consilience also gives places and marks, and "
            "compares what it cut with the input, byte by byte.",
            "Notation: RDKit reads and writes every molecule, which is the whole cost; canonical strings are "
            "remembered, up to 200,000 of them, for later epochs.",
        ],
    )
    theirs = hugging_face(tokenizer) if installed("tokenizers") else None
    index = {symbol: place for place, symbol in enumerate(tokenizer.table.symbols)}
    checked = check(tokenizer, smiles, theirs)
    contenders: dict[str, Callable[[], Any]] = {
        "consilience": partial(encode_all, tokenizer, smiles),
        "re.findall and a dictionary": partial(with_re, index, smiles),
    }
    if theirs is not None:
        contenders["Hugging Face tokenizers"] = partial(with_hugging_face, theirs, smiles)
    else:
        report.notes.append("Hugging Face's tokenizers is not installed: its row is missing.")
    times = race(contenders, rounds=rounds)
    for name in contenders:
        slower = "" if name == "consilience" else times.ratio(name, "consilience")
        report.add("as given", name, n / times.median(name), slower, checked if name == "consilience" else "")

    few = smiles[:REWRITTEN]
    state = tokenizer.state()

    def fresh(form: str) -> MoleculeTokenizer:
        return MoleculeTokenizer.from_state(state | {"options": state["options"] | {"form": form}})

    seen, random = fresh("canonical"), fresh("randomised")
    written = seen.decode(seen.encode(few))
    assert written == [canonical(text) for text in few], "decode(encode(smiles)) is not the canonical SMILES"
    drawn = random.encode(few, generator=torch.Generator().manual_seed(0))
    assert [canonical(text) for text in random.decode(drawn)] == written, "another order is another molecule"
    notations: dict[str, Callable[[], Any]] = {
        "canonical, first epoch": lambda: encode_all(fresh("canonical"), few),
        "canonical, later epochs": partial(encode_all, seen, few),
        "randomised": lambda: encode_all(random, few, torch.Generator().manual_seed(0)),
        "RDKit alone: canonical": lambda: [canonical(text) for text in few],
    }
    times = race(notations, rounds=min(rounds, 3))
    for name in notations:
        ratio = times.ratio(name, "canonical, first epoch") if name.startswith("RDKit") else ""
        done = "" if name.startswith("RDKit") else "decode(encode) = the same molecules"
        report.add("notation", name, len(few) / times.median(name), ratio, done)
    report.write(chosen.out)


if __name__ == "__main__":
    main()
