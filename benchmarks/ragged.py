"""What samples of unequal length cost: batches as training makes them, against the ideal without any padding.

A training step (forward, loss, backward) of one transformer, width 256, 4 layers, 15% masked tokens, on batches that
`epoch_batches` makes from real distributions of lengths.

* ideal (mean): as many tokens in samples of equal length, the mean of the batch. Attention grows with the square of
  the length, so that unequal samples cost more than that even with nothing wasted;
* ideal (sum): the sum over samples of what a sample of that length costs in a batch of its like, interpolated between
  batches of equal length at the 10th, 50th and 90th percentile of tokens;
* ours padded: every sample filled up to the longest of its batch, kernel `padded` with its mask;
* x-transformers: the same filling up, with its mask.

Times are per real token. The content is symbols in every row: what differs is the lengths.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import Report, installed, options, race
from torch import Tensor, nn

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.feed import epoch_batches
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

VOCABULARY, RATE = 128, 0.15
MOSES_RANGE = 15, 57
"""Tokens of the shortest and longest of 100,000 molecules of MOSES."""
REACH_SLOTS, REACH_TIME = 0.95, 1.1


class Symbols(SyntheticTokenizer):
    """Symbols at one coordinate."""

    def __init__(self) -> None:
        super().__init__(MarkovChain())

    @property
    def spec(self) -> TokenSpec:
        """One coordinate, V symbols."""
        return TokenSpec(name="symbols", vocabulary=VOCABULARY, coordinates=1, periods=(2.0, 8192.0))


def smiles_lengths(path: str, most: int) -> np.ndarray:
    """Tokens of the first SMILES of a file, begin and end included; RDKit's NCI set without a path."""
    from rdkit import RDConfig

    from consilience.tokenizers.molecule_symbols import split

    file = Path(path) if path else Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        words = [line.split(",")[0].split()[0] for line in lines if line.strip()]
    found = [len(split(word)) + 2 for word in words[:most] if word not in ("SMILES", "smiles")]
    return np.array([n for n in found if n > 2])


def cell_lengths(path: str, rng: np.random.Generator) -> np.ndarray:
    """Genes and as many matched zeros a cell of an .h5ad, or 200 to 4,000 tokens with the spread of 10x data."""
    if not path:
        return np.clip(np.exp(rng.normal(np.log(1200), 0.6, 20_000)), 200, 4000).astype(np.int64)
    import h5py

    with h5py.File(path) as file:
        return np.clip(2 * np.diff(file["X/indptr"][:]).astype(np.int64), 200, 4000) + 1


def atom_lengths(path: str, rng: np.random.Generator) -> np.ndarray:
    """Atoms of QM9's molecules (an .npz with n_atoms), or a normal distribution of their mean, spread and range."""
    if path:
        return np.load(path)["n_atoms"].astype(np.int64)
    return np.clip(np.rint(rng.normal(18.03, 2.94, 20_000)), 3, 29).astype(np.int64)


def batch_of(lengths: np.ndarray) -> TokenBatch:
    """Random symbols in samples of these lengths."""
    length = torch.as_tensor(lengths.astype(np.int64))
    b, n = len(length), int(length.max())
    real = torch.arange(n) < length[:, None]
    places = torch.arange(n, dtype=torch.float32).expand(b, n) * real
    return TokenBatch(
        length=length, ids=torch.randint(VOCABULARY, (b, n)) * real, positions=places[..., None].contiguous()
    )


def equal(tokens: int, n: int) -> np.ndarray:
    """About so many tokens in samples of n."""
    return np.full(max(1, round(tokens / n)), n)


def model_of(size: dict[str, int], kernel: Any = "auto") -> FoundationModel:
    torch.manual_seed(0)
    return FoundationModel(CoreConfig(**size, kernel=kernel), {"symbols": Symbols()}, Masked(rate=RATE))


def ours(model: FoundationModel, batches: list[TokenBatch]) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)

    def work() -> None:
        for batch in batches:
            model.loss({"symbols": batch}, generator)["symbols"].value.backward()

    return work


def x_transformers(size: dict[str, int], batches: list[TokenBatch]) -> Callable[[], None]:
    from x_transformers import Encoder, TransformerWrapper

    layers = Encoder(
        dim=size["width"], depth=size["depth"], heads=size["heads"], attn_dim_head=size["width"] // size["heads"],
        attn_flash=True, rotary_pos_emb=True, use_rmsnorm=True, ff_relu_squared=True,
    )  # fmt: skip
    model: nn.Module = TransformerWrapper(
        num_tokens=VOCABULARY + 1, max_seq_len=8192, attn_layers=layers, use_abs_pos_emb=False
    )

    def step(ids: Tensor, real: Tensor) -> Tensor:
        hidden = (torch.rand(ids.shape) < RATE) & real
        labels = ids.masked_fill(~hidden, -100)
        logits = model(ids.masked_fill(hidden, VOCABULARY), mask=real)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def work() -> None:
        for batch in batches:
            assert batch.ids is not None
            step(batch.ids, batch.real).backward()

    return work


def main() -> None:
    chosen = options(__doc__, moses="", qm9="", cells="", rounds=5, batches=4)
    rng = np.random.default_rng(0)
    size = {"width": 64, "depth": 2, "heads": 4} if chosen.quick else {"width": 256, "depth": 4, "heads": 8}
    rounds, number = (2, 2) if chosen.quick else (chosen.rounds, chosen.batches)
    nci = smiles_lengths("", 5000)
    inside = nci[(nci >= MOSES_RANGE[0]) & (nci <= MOSES_RANGE[1])]
    moses = smiles_lengths(chosen.moses, 100_000) if chosen.moses else rng.choice(inside, 50_000)
    sources = {
        f"SMILES, {'MOSES' if chosen.moses else 'MOSES-like'}": (moses, 4096),
        "SMILES, all of NCI": (nci, 4096),
        f"cells, {'10x' if chosen.cells else '200 to 4,000 genes'}": (
            cell_lengths(chosen.cells, rng),
            16_384,
        ),
        f"atoms, {'QM9' if chosen.qm9 else 'QM9-like'}": (atom_lengths(chosen.qm9, rng), 4096),
    }
    report = Report(
        name="ragged",
        title="Samples of unequal length: time of a training step",
        columns=(
            "lengths", "mean ± spread", "tokens a batch", "useful tokens / slots", "lengths a batch",
            "k tokens/s", "time / ideal (mean)", "time / ideal (sum)", "ours padded / ours", "x-transformers / ours",
        ),
        packages=("x-transformers",),
        notes=[
            f"Width {size['width']}, {size['depth']} layers, {size['heads']} heads; about {number * 4096:,} tokens a "
            f"round, {rounds} rounds; medians with quartiles over rounds, times per real token.",
            f"MOSES-like: NCI's molecules of {MOSES_RANGE[0]} to {MOSES_RANGE[1]} tokens, drawn 50,000 times. All: "
            "4 to 270 tokens, and so few that an epoch has some 40 batches, which leaves less to sort.",
            "Slots = samples x longest sample, over a whole epoch of batches.",
            f"Reach: useful / slots >= {REACH_SLOTS}, time <= {REACH_TIME} x the ideal.",
        ],
    )  # fmt: skip
    for name, (lengths, budget) in sources.items():
        if chosen.quick:
            lengths, budget = lengths[:4000], budget // 4
        epoch = epoch_batches(lengths, budget, 0, 0)
        slots = sum(len(batch) * int(lengths[batch].max()) for batch in epoch)
        taken = max(1, number * 4096 // budget)
        picked = [lengths[epoch[i]] for i in rng.permutation(len(epoch))[:taken]]
        total = int(sum(part.sum() for part in picked))
        spread = np.sort(np.repeat(np.concatenate(picked), np.concatenate(picked)))
        marks = {f"at {q}": int(spread[int(q / 100 * (len(spread) - 1))]) for q in (10, 50, 90)}
        model = model_of(size)
        shapes: dict[str, list[np.ndarray]] = {
            "ours": picked,
            "mean": [equal(int(part.sum()), round(part.mean())) for part in picked],
            **{mark: [equal(int(part.sum()), n) for part in picked] for mark, n in marks.items()},
        }
        works = {key: ours(model, [batch_of(part) for part in parts]) for key, parts in shapes.items()}
        filled = [np.full(len(part), part.max()) for part in picked]
        works["padded"] = ours(model_of(size, "padded"), [batch_of(part) for part in filled])
        if installed("x_transformers"):
            works["x-transformers"] = x_transformers(size, [batch_of(part) for part in picked])
        times = race(works, rounds=rounds).seconds
        per_token = {
            key: np.array(times[key]) / (sum(int(p.sum()) for p in shapes[key]) if key in shapes else total)
            for key in works
        }
        grid = np.array(list(marks.values()), dtype=float)
        costs = np.array([per_token[mark] for mark in marks])
        ideal = np.array([cost_of_sum(np.concatenate(picked), grid, costs[:, r]) for r in range(rounds)])

        def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
            low, middle, high = np.percentile(above / below, [25, 50, 75])
            return float(middle), float(low), float(high)

        mine = per_token["ours"]
        peer = per_token.get("x-transformers")
        report.add(
            name,
            f"{lengths.mean():.0f} ± {lengths.std():.0f}",
            total // taken,
            float(lengths.sum() / slots),
            float(np.mean([len(np.unique(lengths[batch])) for batch in epoch])),
            float(1e-3 / np.median(mine)),
            ratio(mine, per_token["mean"]),
            ratio(mine, ideal),
            ratio(per_token["padded"], mine),
            "not installed" if peer is None else ratio(peer, mine),
        )
    report.write(chosen.out)


def cost_of_sum(lengths: np.ndarray, grid: np.ndarray, cost: np.ndarray) -> float:
    """Seconds a token of samples of these lengths, each at the cost of its length; beyond the grid as a line."""
    slope, base = np.polyfit(grid, cost, 1) if len(np.unique(grid)) > 1 else (0.0, cost.mean())
    inside = (lengths >= grid[0]) & (lengths <= grid[-1])
    each = np.where(inside, np.interp(lengths, grid, cost), np.maximum(base + slope * lengths, cost.min()))
    return float((each * lengths).sum() / lengths.sum())


if __name__ == "__main__":
    main()
