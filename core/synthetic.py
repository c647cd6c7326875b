"""Sources of tokens whose entropy is known exactly, to prove objectives, samplers and their accounting right.

A Markov chain (symbols) and a Gaussian AR(1) (values), both stationary. Each knows the exact negative
log-likelihood of a sample, the exact distribution of any token given any others (which makes the perfect model
of `core.oracle`), and the exact masked curve

    H_r = mean over i of H(x_i | the others, each kept with probability 1 - r),

whose area over r in [0, 1] is the entropy per token (area theorem of the erasure channel, Ashikhmin, Kramer
and ten Brink 2004). A masked loss at rate r must land on H_r, below the entropy for small r; a next-token or
masked-diffusion loss must land on the entropy itself.

    >>> source = MarkovChain()
    >>> tokens = source.tokens(8, torch.Generator().manual_seed(0))
    >>> source.nll(tokens).mean() / source.length     # close to source.entropy
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.likelihoods import Field

Addressing = Literal["slots", "places"]


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A stationary chain of N tokens.

    Args:
        length: N.
        addressing: how a token says where it stands: by a discrete slot, or by one float coordinate.
    """

    length: int = 6
    addressing: Addressing = "slots"

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConsilienceError(f"{self.name}: length must be at least 1, not {self.length}")
        if self.addressing not in ("slots", "places"):
            raise ConsilienceError(
                f"{self.name}: unknown addressing '{self.addressing}'; known: slots, places"
            )

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """What the tokens look like."""

    @abstractmethod
    def uncertainty(self, left: int | None, right: int | None) -> float:
        """H(x_i | the nearest known tokens) in nats, `left` and `right` tokens away; None = none is known."""

    @abstractmethod
    def nll(self, tokens: TokenBatch) -> Tensor:
        """(B,) float64, exact -log p of the content of the real tokens, in nats."""

    @abstractmethod
    def parameters(self, tokens: TokenBatch, visible: Tensor) -> dict[Field, Tensor]:
        """The exact distribution of every token given the visible others, as its natural likelihood takes it.

        Args:
            tokens: N tokens a sample in natural order; content of tokens that are not visible is not read.
            visible: (B, N) bool.

        Returns:
            field -> (B, N, parameters) float64. A visible token is predicted from the others too.
        """

    @abstractmethod
    def _content(self, n: int, generator: torch.Generator) -> dict[Field, Tensor]:
        """The content of n samples of N tokens."""

    @property
    def entropy(self) -> float:
        """H(x) / N, nats per token."""
        return (self.uncertainty(None, None) + (self.length - 1) * self.uncertainty(1, None)) / self.length

    @property
    def total_correlation(self) -> float:
        """Sum of H(x_i) - H(x), nats per sample."""
        return self.length * (self.masked_curve(1.0) - self.entropy)

    @property
    def dual_total_correlation(self) -> float:
        """H(x) - sum of H(x_i | all others), nats per sample."""
        return self.length * (self.entropy - self.masked_curve(0.0))

    def masked_curve(self, rate: float) -> float:
        """H_r: the loss of a perfect masked model at this rate, nats per hidden token."""
        total = 0.0
        for place in range(self.length):
            for left, p_left in _nearest(place, rate):
                for right, p_right in _nearest(self.length - 1 - place, rate):
                    total += p_left * p_right * self.uncertainty(left, right)
        return total / self.length

    def tokens(self, n: int, generator: torch.Generator) -> TokenBatch:
        """n samples of N tokens."""
        content: Any = self._content(n, generator)
        return self.place(TokenBatch(length=torch.full((n,), self.length), **content))

    def place(self, tokens: TokenBatch) -> TokenBatch:
        """The tokens with the addresses of this source."""
        row = torch.arange(tokens.width, device=tokens.device).expand(tokens.size, -1) * tokens.real
        if self.addressing == "slots":
            return TokenBatch(**{**vars(tokens), "address": row})
        return TokenBatch(**{**vars(tokens), "positions": row[..., None].float()})

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the source, as JSON types; see `source_from_state`."""
        return {"source": self.name, **asdict(self)}

    def _addresses(self) -> dict[str, Any]:
        """The part of the spec that says how tokens are addressed."""
        if self.addressing == "slots":
            return {"addresses": self.length}
        return {"coordinates": 1, "position_encoding": "both", "periods": (2.0, 4.0 * self.length)}


@dataclass(frozen=True, kw_only=True)
class MarkovChain(Source):
    """A stationary Markov chain over V symbols.

    Args:
        transition: V rows of V probabilities, all positive: from a symbol to the next.
    """

    transition: tuple[tuple[float, ...], ...] = ((0.85, 0.12, 0.03), (0.05, 0.75, 0.20), (0.25, 0.05, 0.70))

    name = "markov-chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "transition", tuple(tuple(row) for row in self.transition))
        matrix = self._matrix
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ConsilienceError(f"{self.name}: transition must be square, not {tuple(matrix.shape)}")
        if bool((matrix <= 0).any()) or not torch.allclose(matrix.sum(1), torch.ones(()).double()):
            raise ConsilienceError(f"{self.name}: transition needs positive rows that sum to 1")

    @property
    def _matrix(self) -> Tensor:
        return torch.tensor(self.transition, dtype=torch.float64)

    @property
    def stationary(self) -> Tensor:
        """(V,) float64, the distribution of every single token."""
        matrix, ones = self._matrix, torch.ones(1, len(self.transition), dtype=torch.float64)
        balance = torch.cat([matrix.T - torch.eye(len(matrix), dtype=torch.float64), ones])
        wanted = F.pad(torch.zeros(len(matrix), dtype=torch.float64), (0, 1), value=1.0)
        return torch.linalg.lstsq(balance, wanted[:, None]).solution[:, 0]

    @property
    def spec(self) -> TokenSpec:
        """V symbols, named a, b, c, ..."""
        count = len(self.transition)
        symbols = tuple(chr(97 + i) for i in range(count)) if count <= 26 else ()
        return TokenSpec(name=self.name, vocabulary=count, symbols=symbols, **self._addresses())

    def uncertainty(self, left: int | None, right: int | None) -> float:
        """H(l, x, r) - H(l, r) by summing over all values of the three."""
        first, matrix = self.stationary, self._matrix
        power = torch.linalg.matrix_power
        joint = first[None] if left is None else first[:, None] * power(matrix, left)
        after = torch.ones(len(matrix), 1, dtype=torch.float64) if right is None else power(matrix, right)
        triple = joint[:, :, None] * after[None]
        pair = triple.sum(1)
        return float(torch.special.entr(triple).sum() - torch.special.entr(pair).sum())

    def nll(self, tokens: TokenBatch) -> Tensor:
        """-log p by the chain rule."""
        assert tokens.ids is not None
        steps = -self._matrix.log()[tokens.ids[:, :-1], tokens.ids[:, 1:]]
        return -self.stationary.log()[tokens.ids[:, 0]] + (steps * tokens.real[:, 1:]).sum(1)

    def parameters(self, tokens: TokenBatch, visible: Tensor) -> dict[Field, Tensor]:
        """Log probabilities, by passing messages forward and backward along the chain."""
        assert tokens.ids is not None
        matrix, count = self._matrix, len(self.transition)
        known = F.one_hot(tokens.ids, count).double()
        evidence = torch.where((visible & tokens.real)[..., None], known, torch.ones_like(known))
        forward = [self.stationary.expand(tokens.size, count)]
        backward = [torch.ones(tokens.size, count, dtype=torch.float64)]
        for row in range(tokens.width - 1):
            forward.append(_normalise((forward[-1] * evidence[:, row]) @ matrix))
            backward.append(_normalise((backward[-1] * evidence[:, -1 - row]) @ matrix.T))
        messages = torch.stack(forward, dim=1) * torch.stack(backward[::-1], dim=1)
        return {"ids": _normalise(messages).log()}

    def _content(self, n: int, generator: torch.Generator) -> dict[Field, Tensor]:
        ids = [torch.multinomial(self.stationary, n, replacement=True, generator=generator)]
        for _ in range(self.length - 1):
            rows = self._matrix[ids[-1]]
            ids.append(torch.multinomial(rows, 1, generator=generator)[:, 0])
        return {"ids": torch.stack(ids, dim=1)}


@dataclass(frozen=True, kw_only=True)
class GaussianAR1(Source):
    """A stationary Gaussian chain: z_i = correlation * z_{i-1} + noise, z ~ N(0, 1), x = mean + spread * z.

    Args:
        correlation: of neighbours, in (-1, 1).
        mean: of every token, in the units of the values.
        spread: standard deviation of every token, in the units of the values.
    """

    correlation: float = 0.9
    mean: float = 0.0
    spread: float = 1.0

    name = "gaussian-ar1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 < self.correlation < 1 or self.correlation == 0:
            raise ConsilienceError(
                f"{self.name}: correlation must lie in (-1, 1), not 0, not {self.correlation}"
            )
        if self.spread <= 0:
            raise ConsilienceError(f"{self.name}: spread must be positive, not {self.spread}")

    @property
    def spec(self) -> TokenSpec:
        """One real channel, standardised exactly."""
        shift, scale = self.mean, self.spread
        return TokenSpec(
            name=self.name, channels=1, value_shift=shift, value_scale=scale, **self._addresses()
        )

    @property
    def covariance(self) -> Tensor:
        """(N, N) float64, of the standardised z."""
        row = torch.arange(self.length, dtype=torch.float64)
        return self.correlation ** (row[:, None] - row).abs()

    def uncertainty(self, left: int | None, right: int | None) -> float:
        """0.5 log(2 pi e variance) of a Gaussian between its nearest known neighbours."""
        precision = 1.0
        for distance in (left, right):
            if distance is not None:
                shared = self.correlation ** (2 * distance)
                precision += shared / (1 - shared)
        return 0.5 * math.log(2 * math.pi * math.e / precision) + math.log(self.spread)

    def nll(self, tokens: TokenBatch) -> Tensor:
        """-log p by the chain rule."""
        z = self._standard(tokens)
        variance = 1 - self.correlation**2
        first = 0.5 * (z[:, 0].square() + math.log(2 * math.pi))
        error = z[:, 1:] - self.correlation * z[:, :-1]
        steps = 0.5 * (error.square() / variance + math.log(2 * math.pi * variance))
        return first + (steps * tokens.real[:, 1:]).sum(1) + tokens.length * math.log(self.spread)

    def parameters(self, tokens: TokenBatch, visible: Tensor) -> dict[Field, Tensor]:
        """Mean and log spread (standardised) given the nearest visible tokens on both sides."""
        z, visible = self._standard(tokens), visible & tokens.real
        precision, weighted = torch.ones_like(z), torch.zeros_like(z)
        row = torch.arange(tokens.width).expand_as(visible)
        before = F.pad(torch.where(visible, row, -1).cummax(1).values, (1, 0), value=-1)[:, :-1]
        after = F.pad(torch.where(visible, row, tokens.width).flip(1).cummin(1).values.flip(1), (0, 1))[:, 1:]
        after[:, -1] = tokens.width
        for neighbour, found in ((before, before >= 0), (after, after < tokens.width)):
            distance = torch.where(found, (row - neighbour).abs(), 1).double()
            value = torch.gather(z, 1, torch.where(found, neighbour, 0))
            shared = self.correlation**distance
            information = found / (1 - shared.square())
            precision = precision + information * shared.square()
            weighted = weighted + information * shared * value
        return {"values": torch.stack([weighted / precision, -0.5 * precision.log()], dim=-1)}

    def velocity(self, noisy: Tensor, time: Tensor) -> Tensor:
        """E[z - noise | (1 - t) noise + t z]: what a perfect flow-matching model predicts.

        Args:
            noisy: (B, N) standardised values.
            time: (B,) in [0, 1].
        """
        t, covariance = time.double()[:, None, None], self.covariance
        eye = torch.eye(self.length, dtype=torch.float64)
        mixed = (1 - t) ** 2 * eye + t**2 * covariance
        return ((t * covariance - (1 - t) * eye) @ torch.linalg.solve(mixed, noisy.double()[..., None]))[
            ..., 0
        ]

    def mmse(self, snr: float) -> float:
        """Squared error per token of the best estimate of z from sqrt(snr) * z + noise: trace(S (I + g S)^-1) / N."""
        eigenvalues = torch.linalg.eigvalsh(self.covariance)
        return float((eigenvalues / (1 + snr * eigenvalues)).mean())

    def _standard(self, tokens: TokenBatch) -> Tensor:
        assert tokens.values is not None
        return (tokens.values[..., 0].double() - self.mean) / self.spread

    def _content(self, n: int, generator: torch.Generator) -> dict[Field, Tensor]:
        noise = torch.randn(n, self.length, generator=generator, dtype=torch.float64)
        z = noise @ torch.linalg.cholesky(self.covariance).T
        return {"values": (self.mean + self.spread * z).float()[..., None]}


SOURCES: dict[str, type[Source]] = {source.name: source for source in (MarkovChain, GaussianAR1)}


def source_from_state(state: dict[str, Any]) -> Source:
    """The inverse of `Source.state`."""
    options = dict(state)
    name = options.pop("source", None)
    if name not in SOURCES:
        raise ConsilienceError(f"unknown source '{name}'; known: {', '.join(SOURCES)}")
    return SOURCES[name](**options)


def _nearest(room: int, rate: float) -> Iterator[tuple[int | None, float]]:
    """Distance to the nearest kept token on a side with `room` tokens, and its probability."""
    for distance in range(1, room + 1):
        yield distance, (1 - rate) * rate ** (distance - 1)
    yield None, rate**room


def _normalise(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
