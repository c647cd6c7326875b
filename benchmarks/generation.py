"""1,000 strings by cached autoregression: ours beside Hugging Face's GPT-2 `generate` at the same size.

Random weights: what is timed is the machinery. Two lengths: all strings of 64 symbols, and strings that end where
real drug-like molecules do (the bundled RDKit set), where a batch goes on until its longest member is done.
"""

from collections.abc import Callable

import numpy as np
import torch
from harness import Report, installed, options, race
from torch import Tensor
from train_step import VOCABULARY, Symbols

from consilience.core.batch import TokenBatch
from consilience.core.model import FoundationModel
from consilience.core.objectives import NextToken
from consilience.core.sampling import Sampling
from consilience.core.transformer import CoreConfig

LONGEST = 64


def molecule_lengths(n: int) -> Tensor:
    """(n,) numbers of symbols of real molecules, at most LONGEST."""
    from consilience.domains.molecules.data import bundled
    from consilience.tokenizers.molecules import MoleculeTokenizer

    records = bundled().records
    lengths = MoleculeTokenizer.fit(records).lengths(records)
    return torch.as_tensor(np.random.default_rng(0).choice(lengths, n).clip(2, LONGEST))


def ours(size: dict[str, int], lengths: Tensor, batch: int) -> Callable[[], object]:
    """The sampler on templates of these lengths."""
    model = FoundationModel(
        CoreConfig(width=size["width"], depth=size["depth"], heads=size["heads"]),
        {"symbols": Symbols(LONGEST)},
        NextToken(),
    ).eval()
    places = torch.arange(LONGEST, dtype=torch.float32)[None, :, None]

    @torch.no_grad()
    def work() -> list[TokenBatch]:
        made = []
        generator = torch.Generator().manual_seed(0)
        for part in lengths.split(batch):
            n = len(part)
            width = int(part.max())
            template = TokenBatch(
                length=part,
                ids=torch.zeros(n, width, dtype=torch.long),
                positions=places[:, :width].repeat(n, 1, 1),
            )
            made.append(
                model.objective.sample(model.predictor(), template, template.real, generator, Sampling())
            )
        return made

    return work


def hugging_face(size: dict[str, int], lengths: Tensor, batch: int) -> Callable[[], object]:
    """GPT-2's `generate` with its cache; a processor ends every string at its length."""
    from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

    end = VOCABULARY
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY + 2, n_positions=LONGEST + 1, n_embd=size["width"], n_layer=size["depth"],
            n_head=size["heads"], bos_token_id=VOCABULARY + 1, eos_token_id=end, pad_token_id=end,
            attn_implementation="sdpa",
        )
    ).eval()  # fmt: skip

    class EndAt(LogitsProcessor):
        """Force the end symbol once a string has its length, and never before."""

        def __init__(self, lengths: Tensor) -> None:
            self.lengths = lengths

        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            scores[:, end] = float("-inf")
            over = ids.shape[1] >= self.lengths
            scores[over] = float("-inf")
            scores[over, end] = 0.0
            return scores

    @torch.no_grad()
    def work() -> list[Tensor]:
        torch.manual_seed(0)
        return [
            model.generate(
                torch.full((len(part), 1), VOCABULARY + 1), do_sample=True, max_new_tokens=int(part.max()),
                logits_processor=LogitsProcessorList([EndAt(part)]), top_k=0,
                attention_mask=torch.ones(len(part), 1, dtype=torch.long),
            )
            for part in lengths.split(batch)
        ]  # fmt: skip

    return work


def main() -> None:
    """Run both lengths."""
    chosen = options(__doc__, rounds=5, n=1000, batch=250)
    size = {"width": 64, "depth": 2, "heads": 4} if chosen.quick else {"width": 256, "depth": 8, "heads": 8}
    n = 50 if chosen.quick else chosen.n
    report = Report(
        "generation",
        "Generation: 1,000 strings with cached keys and values",
        ["lengths", "who", "seconds", "strings/s", "time / ours"],
        packages=("transformers",),
        notes=[f"{size}, batches of {chosen.batch}, random weights, vocabulary {VOCABULARY}. Reach: 3."],
    )
    for name, lengths in (("64 symbols", torch.full((n,), LONGEST)), ("of molecules", molecule_lengths(n))):
        racers = {"consilience": ours(size, lengths, chosen.batch)}
        if installed("transformers"):
            racers["Hugging Face GPT-2"] = hugging_face(size, lengths, chosen.batch)
        else:
            report.notes.append("transformers is not installed")
        times = race(racers, rounds=2 if chosen.quick else chosen.rounds)
        for who in racers:
            report.add(name, who, times.median(who), n / times.median(who), times.ratio(who, "consilience"))
    report.write(chosen.out)


if __name__ == "__main__":
    main()
