"""Places in space as distances: what the core sees of them under `TokenSpec.invariant`, and how they move.

Coordinates do not enter the tokens. Distances enter twice: as a bias of attention (one profile per layer and head)
and as the surroundings of every token (how far tokens of each type stand). Distances become Gaussian bumps after an
affine map per ordered pair of types, the idea of Uni-Mol (Zhou et al. 2023); the sum over neighbours by type is that
of symmetry functions (Behler and Parrinello 2007, doi:10.1103/PhysRevLett.98.146401). States are then invariant to
rotation, translation and reflection, so mirror images look alike; a velocity is put together from differences of
places, and turns with them (Satorras et al. 2021, arXiv:2102.09844).

Shape letters as elsewhere; K bumps, F filters, G types. Distances are in standardised units.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from consilience.core.batch import TokenSpec
from consilience.core.kernels import apply_linear
from consilience.core.transformer import CoreConfig
from consilience.core.view import View

BUMPS = 32
REACH = 4.0
"""Centre of the last bump, in standard deviations of the coordinates; bumps are as wide as they are apart."""
FAR = 1e3
"""A distance at which every bump is zero, to the bit."""
FILTERS = 32


def places_of(view: View) -> Tensor:
    """(B, M, 3) float32 standardised places."""
    assert view.tokens.values is not None
    return view.tokens.values[..., :3].float()


def placed(view: View) -> Tensor:
    """(B, M) bool: real rows whose place the core may see."""
    return view.tokens.real & ~view.hidden


def type_count(spec: TokenSpec) -> int:
    """G: symbols and the erased one, or addresses, or one."""
    return spec.vocabulary + 1 if spec.vocabulary else max(spec.addresses, 1)


def types_of(view: View, spec: TokenSpec) -> Tensor:
    """(B, M) int64 type of every row: its symbol (the last one for an erased symbol), or its address."""
    tokens = view.tokens
    found = tokens.ids if spec.vocabulary else tokens.address if spec.addresses else None
    return torch.zeros_like(view.hidden, dtype=torch.long) if found is None else found


def kinds_of(view: View) -> Tensor:
    """(B, M, M) int64 kind of every pair of rows."""
    assert view.tokens.pairs is not None
    return view.tokens.pairs.long()


def looked_up(table: Tensor, view: View, spec: TokenSpec) -> Tensor:
    """(B, M, M, W): what a table of `spec.pairs` x W numbers, laid end to end, says of the kind of every pair."""
    return nn.functional.embedding(kinds_of(view), table.view(spec.pairs, -1))


class DistanceBasis(nn.Module):
    """Distances between the rows of a sample as K Gaussian bumps, after an affine map per ordered pair of types.

    Where pairs have kinds (bonds), each kind has a map of its own.
    """

    def __init__(self, spec: TokenSpec) -> None:
        super().__init__()
        self.spec = spec
        self.types = type_count(spec)
        # One-dimensional, as all tables of this file, so that weight decay leaves them alone.
        self.kinds = max(spec.pairs, 1)
        self.stretch = nn.Parameter(torch.ones(self.types**2 * self.kinds))
        self.shift = nn.Parameter(torch.zeros(self.types**2 * self.kinds))

    def forward(self, view: View) -> Tensor:
        """(B, M, M, K) float32; zero where either place is hidden or padding, and between a row and itself."""
        places, types, seen = places_of(view), types_of(view, self.spec), placed(view)
        distance = (places[:, :, None] - places[:, None]).square().sum(-1).add(1e-12).sqrt()
        pair = types[:, :, None] * self.types + types[:, None]
        if self.spec.pairs:
            pair = pair * self.kinds + kinds_of(view)
        mapped = self.stretch[pair] * distance + self.shift[pair]
        both = (
            seen[:, :, None] & seen[:, None] & ~torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        )
        return _Bumps.apply(mapped.masked_fill(~both, FAR))


class _Bumps(torch.autograd.Function):
    """(...) -> (..., K), exp(-z^2) with z = (x - centre) / (sqrt(2) width).

    Written by hand because plain operations pass over (B, M, M, K) numbers a dozen times, which took most of a step.
    """

    SHARPNESS = (BUMPS - 1) / REACH * 0.5**0.5

    @staticmethod
    def _argument(x: Tensor) -> Tensor:
        centres = torch.linspace(0, REACH, BUMPS, device=x.device, dtype=x.dtype)
        return torch.sub(x[..., None] * _Bumps.SHARPNESS, centres * _Bumps.SHARPNESS)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = _Bumps._argument(x).square_().neg_().exp_()
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, out = ctx.saved_tensors
        return _Bumps._argument(x).mul_(out).mul_(gradient).sum(-1) * (-2 * _Bumps.SHARPNESS)


class DistanceView(nn.Module):
    """How distances enter the core: a bias of attention for every layer and head, and the surroundings of each row."""

    def __init__(self, spec: TokenSpec, core: CoreConfig) -> None:
        super().__init__()
        self.spec, self.heads = spec, core.heads
        self.basis = DistanceBasis(spec)
        self.mix = nn.Linear(BUMPS, core.depth * core.heads, bias=False)
        self.surroundings = nn.Linear(self.basis.types * BUMPS, core.width, bias=False)
        nn.init.normal_(self.mix.weight, std=0.02)
        nn.init.normal_(self.surroundings.weight, std=BUMPS**-0.5)
        self.kinds = nn.Parameter(torch.zeros(spec.pairs * core.depth * core.heads)) if spec.pairs else None

    def forward(self, view: View) -> tuple[Tensor, Tensor]:
        """Bias (L, B, H, M, M) and rows (B, M, D) to add to the embedded tokens."""
        with torch.autocast(view.hidden.device.type, enabled=False):
            bumps = self.basis(view)
            mixed = apply_linear(self.mix, bumps)
            if self.kinds is not None:
                mixed = mixed + looked_up(self.kinds, view, self.spec)
            bias = mixed.unflatten(-1, (-1, self.heads)).permute(3, 0, 4, 1, 2)
            types = types_of(view, self.spec)
            kind = nn.functional.one_hot(types, self.basis.types).to(bumps.dtype)
            near = torch.einsum("bijk,bjg->bigk", bumps, kind).flatten(2)
            return bias.contiguous(), apply_linear(self.surroundings, near)


class EquivariantVelocity(nn.Module):
    """Velocities that turn with the places: v_i = g(h_i) x_i + sum over j of (x_i - x_j) phi(h_i, h_j, d_ij).

    Places and velocities count from their mean over the sample. phi is a sum over F filters of the distance, each
    gated by both states and, where pairs have kinds, by these; g and the weights of the filters start at zero.
    """

    def __init__(self, spec: TokenSpec, width: int) -> None:
        super().__init__()
        self.basis = DistanceBasis(spec)
        self.filters = nn.Linear(BUMPS, FILTERS)
        self.receive = nn.Linear(width, FILTERS)
        self.send = nn.Linear(width, FILTERS)
        self.weight = nn.Parameter(torch.zeros(FILTERS))
        self.pull = nn.Linear(width, 1)
        nn.init.zeros_(self.pull.weight)
        nn.init.zeros_(self.pull.bias)
        self.spec = spec
        self.gates = nn.Parameter(torch.ones(spec.pairs * FILTERS)) if spec.pairs else None

    def forward(self, view: View, states: Tensor) -> Tensor:
        """(B, M, 3) standardised velocities. states: (B, M, D) of the core."""
        with torch.autocast(states.device.type, enabled=False):
            states, seen = states.float(), placed(view)
            x = centred(places_of(view), seen)
            filters = apply_linear(self.filters, self.basis(view))
            if self.gates is not None:
                filters = filters * looked_up(self.gates, view, self.spec)
            receive = self.weight * apply_linear(self.receive, states)
            phi = torch.einsum("bijf,bif->bij", filters * apply_linear(self.send, states)[:, None], receive)
            phi = phi * (seen[:, :, None] & seen[:, None])
            velocity = (apply_linear(self.pull, states) + phi.sum(-1, keepdim=True)) * x - phi @ x
            # Neither noise nor data moves the mean; what is left of it here would carry clouds away.
            return centred(velocity, seen)


def centred(x: Tensor, where: Tensor) -> Tensor:
    """x (B, M, C) minus its mean over the rows `where` (B, M) of each sample; zero in all other rows."""
    x = x * where[..., None]
    mean = x.sum(1, keepdim=True) / where.sum(1).clamp_min(1)[:, None, None]
    return (x - mean) * where[..., None]


def turned_onto(x: Tensor, target: Tensor) -> Tensor:
    """x (B, M, 3) after the rotation or reflection that brings it nearest to the target (Kabsch 1976).

    Both count from their mean, with zeros in rows that do not count.
    """
    u, _, vh = torch.linalg.svd(x.transpose(1, 2) @ target)
    return x @ (u @ vh)
