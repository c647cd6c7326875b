"""What the string of a molecule tells of its conformer and the conformer of the string, on held-out molecules.

Takes a run of `consilience train molecules points --pairs`. Log-likelihoods of strings alone, given their conformer and
given that of another molecule (the control); strings drawn given each, and how many are the molecule; the same of
conformers as far as their surrogate loss and their atoms tell.

    python benchmarks/pairs.py --model runs/pairs
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Report, options
from rdkit import Chem, rdBase
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

import consilience
from consilience.commands.given import pairs_of_run
from consilience.core.batch import TokenBatch
from consilience.core.context import beside
from consilience.core.model import FoundationModel
from consilience.core.objectives.base import predictable
from consilience.core.records import take_records

STRINGS, PLACES = "molecules", "points"


def key_of(smiles: str) -> tuple[str, str] | None:
    """(canonical SMILES without stereochemistry, formula with hydrogens); None for what is no molecule."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles) if smiles else None
    return None if mol is None else (Chem.MolToSmiles(mol, isomericSmiles=False), CalcMolFormula(mol))


def interval(values: np.ndarray, seed: int = 0) -> str:
    """The mean and its 95% interval over molecules (2,000 bootstrap resamples)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def found(drawn: Sequence[str], truth: Sequence[str]) -> tuple[str, str, str]:
    """Shares of strings that are valid, of the formula, and the molecule."""
    made, wanted = [key_of(text) for text in drawn], [key_of(text) for text in truth]
    assert all(one is not None for one in wanted)
    valid = np.array([one is not None for one in made], dtype=float)
    formula = np.array(
        [a is not None and b is not None and a[1] == b[1] for a, b in zip(made, wanted)], float
    )
    same = np.array([a is not None and b is not None and a[0] == b[0] for a, b in zip(made, wanted)], float)
    return interval(valid), interval(formula), interval(same)


def right_atoms(drawn: Sequence[Any], truth: Sequence[Any]) -> str:
    """Share of clouds with the atoms of the molecule."""
    same = [sorted(map(str, a.types)) == sorted(map(str, b.types)) for a, b in zip(drawn, truth)]
    return interval(np.array(same, dtype=float))


def contexts(records: Any, n: int) -> dict[str, Any]:
    """What each of n records is shown: nothing, its own, or that of the next one in a shuffled order."""
    ring = np.random.default_rng(1).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[ring] = np.roll(ring, 1)
    return {"alone": None, "given its own": records, "given another's": take_records(records, other)}


def surrogate(model: FoundationModel, tokens: TokenBatch, other: TokenBatch | None) -> float:
    """The held-out loss of conformers, nats a token of a density that is none (clouds are centred)."""
    whole = beside(tokens, None if other is None else {STRINGS: other})
    return model.evaluate(whole, domain=PLACES, seed=0).nats_per_token


def measure(model: FoundationModel, folder: Path, report: Report, *, n: int, draws: int, seed: int) -> None:
    """All rows."""
    pairs = pairs_of_run(model, folder)
    test = pairs[STRINGS].split.test
    chosen = np.sort(np.random.default_rng(seed).permutation(test)[:n])
    strings = take_records(pairs[STRINGS].collection.records, chosen)
    clouds = take_records(pairs[PLACES].collection.records, chosen)
    n = len(chosen)
    exact = model.objective.likelihood_kind(model.predictor(STRINGS)) != "surrogate"
    alone = None
    for name, shown in contexts(clouds, n).items() if exact else ():
        context = None if shown is None else {PLACES: shown}
        scores = model.log_likelihood(strings, domain=STRINGS, context=context, seed=seed)
        nats = -scores.values
        alone = nats if alone is None else alone
        report.add(
            f"string {name}", f"nats per symbol ({scores.kind})", f"{nats.sum() / scores.tokens.sum():.4f}"
        )
        if shown is not None:
            report.add(f"string {name}", "nats per molecule below alone, paired", interval(alone - nats))
    few = min(draws, n)
    some, seen = strings[:few], take_records(clouds, np.arange(few))
    tokens = model.tokenizers[STRINGS].encode(some)
    for name, shown in contexts(seen, few).items():
        context = None if shown is None else {PLACES: shown}
        made = model.generate(few, domain=STRINGS, seed=seed, context=context)
        for what, share in zip(("valid", "the formula", "the molecule"), found(made, some)):
            report.add(f"string drawn {name}", f"share: {what}", share)
        if model.objective.ends_samples:
            continue
        made = model.complete(some, predictable(tokens), domain=STRINGS, seed=seed, context=context)
        for what, share in zip(("valid", "the formula", "the molecule"), found(made, some)):
            report.add(f"string drawn {name}, length told", f"share: {what}", share)
    places = model.tokenizers[PLACES].encode(take_records(clouds, np.arange(few)))
    for name, told in contexts(some, few).items():
        other = None if told is None else model.tokenizers[STRINGS].encode(told)
        report.add(f"conformer {name}", "surrogate loss per atom", f"{surrogate(model, places, other):.4f}")
        context = None if told is None else {STRINGS: told}
        made = model.complete(seen, predictable(places), domain=PLACES, seed=seed, context=context)
        report.add(
            f"conformer drawn {name}, number of atoms told", "share: the atoms", right_atoms(made, seen)
        )


def made_run(folder: Path) -> Path:
    """A run without data of one's own, to see that everything works."""
    consilience.train(
        [STRINGS, PLACES], out=folder, pairs=True, objective="any-order", limit=120, progress=False,
        core={"width": 16, "depth": 1, "heads": 2}, tokenizer_options={PLACES: {"types": "content"}},
        training={"steps": 5, "tokens_per_batch": 512, "validations": 0},
    )  # fmt: skip
    return folder


def main() -> int:
    """Measure one run."""
    chosen = options(__doc__, model="", records=2000, draws=500, seed=0, name="pairs")
    if not chosen.quick and not chosen.model:
        print("give --model: a run of consilience train molecules points --pairs")
        return 2
    folder = made_run(Path("run")) if chosen.quick else Path(chosen.model)
    model = consilience.load(folder)
    torch.manual_seed(0)
    training = model.provenance["training"]
    report = Report(
        chosen.name, f"Pairs of strings and conformers: {model.objective.name}", ["what", "measure", "value"],
        packages=("rdkit",), notes=[
            f"Held-out molecules: {chosen.records} for likelihoods, {chosen.draws} for draws (one each), seed "
            f"{chosen.seed}; 95% intervals over molecules, one seed of training. Core of width "
            f"{model.core_config.width}, {model.core_config.depth} layers, {training['steps']} steps of at most "
            f"{training['tokens_per_batch']} tokens; {model.provenance['data'][STRINGS]['train']:,} training molecules "
            "of other scaffolds. The molecule: the same canonical SMILES without stereochemistry.",
        ],
    )  # fmt: skip
    size = {"n": 20, "draws": 8} if chosen.quick else {"n": chosen.records, "draws": chosen.draws}
    measure(model, folder, report, **size, seed=chosen.seed)
    report.write(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
