"""The measured cost of a step: right against a hand count, proportional to the work, and without side effects."""

import pytest
import torch

from consilience.core.flops import step_cost
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked, NextToken
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

SOURCE = MarkovChain(length=32)
CORE = CoreConfig(width=64, depth=3, heads=4)


def cost_of(objective, samples: int = 8, core: CoreConfig = CORE):
    torch.manual_seed(0)
    model = FoundationModel(core, {SOURCE.name: SyntheticTokenizer(SOURCE)}, objective)
    tokens = SOURCE.tokens(samples, torch.Generator().manual_seed(0))
    return step_cost(model, [(SOURCE.name, tokens)]), model


def test_a_step_costs_what_its_products_cost() -> None:
    cost, model = cost_of(NextToken())
    tokens, width, depth, length = 8 * 32, 64, 3, 32
    matrices = sum(p.numel() for block in model.core.blocks for p in block.parameters() if p.dim() == 2)
    attention = 2 * 2 * 8 * length * length * width * depth  # scores and sums, a full square
    by_hand = 3 * (2 * tokens * matrices + attention)
    assert cost.flops == pytest.approx(by_hand, rel=0.1)
    assert (cost.samples, cost.tokens, cost.scored) == (8, tokens, tokens)


def test_cost_follows_the_work() -> None:
    once, _ = cost_of(NextToken())
    twice, _ = cost_of(NextToken(), samples=16)
    masked, _ = cost_of(Masked(rate=0.5))
    assert twice.flops == pytest.approx(2 * once.flops, rel=0.02)
    assert masked.flops == pytest.approx(once.flops, rel=0.05)
    assert 0.3 < masked.scored / masked.tokens < 0.7


def test_counting_changes_nothing() -> None:
    cost, model = cost_of(Masked())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = step_cost(model, [(SOURCE.name, SOURCE.tokens(8, torch.Generator().manual_seed(0)))])
    assert again == cost
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="at least one batch"):
        step_cost(model, [])
