"""From a view to rows of width D: content + own address + the address that is asked for."""

import torch
from torch import Tensor, nn

from consilience.core.batch import TokenSpec
from consilience.core.positions import fourier_features, rotary_angles
from consilience.core.transformer import CoreConfig
from consilience.core.view import View


class SoftBins(nn.Module):
    """A smooth lookup of one value in K learned rows: softmax over distances to K fixed centres.

    Continuous in the value and free of ties, unlike quantile bins.
    """

    def __init__(self, width: int, bins: int = 32) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(-3, 3, bins), persistent=False)
        self.table = nn.Linear(bins, width, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """(B, N, 1) -> (B, N, D)."""
        sharpness = (self.centres[1] - self.centres[0]).square().reciprocal()
        return self.table(torch.softmax(-sharpness * (values - self.centres).square(), dim=-1))


class TokenEmbedder(nn.Module):
    """Embeds the tokens of one science for the core, and turns their places into rotary angles."""

    FEATURES = 16

    def __init__(self, spec: TokenSpec, core: CoreConfig) -> None:
        super().__init__()
        self.spec = spec
        self.head_width = core.head_width
        width = core.width
        self.hidden = nn.Parameter(torch.empty(width))
        self.start = nn.Parameter(torch.empty(width))
        if spec.vocabulary:
            self.symbols = nn.Embedding(spec.vocabulary + 1, width)  # the last row: a hidden symbol
        if spec.invariant:
            self.place = nn.Parameter(
                torch.empty(width)
            )  # says that the row stands somewhere; where, it does not
        if spec.channels > self._unseen:
            self.values = self._value_encoder(spec, width)
        if spec.addresses:
            self.addresses = nn.Embedding(spec.addresses, width)
            self.ask = nn.Linear(width, width, bias=False)
        if self._fourier_places:
            self.places = nn.Linear(2 * self.FEATURES * spec.coordinates, width, bias=False)
            self.ask_places = nn.Linear(2 * self.FEATURES * spec.coordinates, width, bias=False)
        self.reset_parameters()

    @property
    def _fourier_places(self) -> bool:
        spec = self.spec
        return (
            bool(spec.coordinates)
            and spec.position_encoding in ("fourier", "both")
            and not spec.rotary_from_values
        )

    @property
    def _unseen(self) -> int:
        """How many of the first channels do not enter the rows: places that are seen as distances."""
        return 3 if self.spec.invariant else 0

    def _value_encoder(self, spec: TokenSpec, width: int) -> nn.Module:
        seen = spec.channels - self._unseen
        channels = seen * (2 if spec.weighted else 1)
        if spec.value_encoding == "soft-bins" and spec.channels == 1:
            return SoftBins(width)
        if spec.value_encoding == "fourier":
            channels += 2 * TokenEmbedder.FEATURES * seen
        return nn.Linear(channels, width)

    def reset_parameters(self) -> None:
        """Every part starts at unit variance over its inputs' count, so that no part drowns another."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2 and not name.startswith(("symbols", "addresses")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter, std=0.5)

    def forward(self, view: View) -> Tensor:
        """(B, M, D)."""
        tokens = view.tokens
        visible = ~view.hidden
        rows = torch.where(visible[..., None], self._content(view), self.hidden)
        if tokens.address is not None and self.spec.addresses:
            rows = rows + self.addresses(tokens.address)
        if self._fourier_places:
            assert tokens.positions is not None
            rows = rows + self.places(self._features(tokens.positions))
        if view.start is not None:
            rows = torch.where(view.start[..., None], self.start, rows)
        if view.ask_address is not None and self.spec.addresses:
            rows = rows + self.ask(self.addresses(view.ask_address))
        if view.ask_positions is not None and self._fourier_places:
            rows = rows + self.ask_places(self._features(view.ask_positions))
        return rows

    def _content(self, view: View) -> Tensor:
        tokens = view.tokens
        parts = []
        if self.spec.vocabulary:
            assert tokens.ids is not None
            parts.append(self.symbols(tokens.ids))
        if self.spec.invariant:
            parts.append(self.place.expand(*view.hidden.shape, -1))
        if self.spec.channels > self._unseen:
            assert tokens.values is not None
            values = tokens.values[..., self._unseen :]
            features = [values]
            if self.spec.weighted:
                weight = tokens.weight if tokens.weight is not None else torch.ones_like(values)
                features.append(torch.log1p(weight * self.spec.value_scale**2) / 4)
            if self.spec.value_encoding == "fourier":
                features.append(fourier_features(values, self.spec.value_periods, self.FEATURES))
            encoded = torch.cat(features, dim=-1)
            parts.append(self.values(encoded.to(self.hidden.dtype)))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _features(self, positions: Tensor) -> Tensor:
        return fourier_features(positions, self.spec.periods, self.FEATURES).to(self.hidden.dtype)

    def angles(self, view: View) -> tuple[Tensor | None, Tensor | None]:
        """Rotary angles of keys and of queries, (B, M, d / 2) each; None where there is no rotation."""
        spec = self.spec
        if spec.rotary_from_values:
            assert view.tokens.values is not None
            places = view.tokens.values[..., : spec.coordinates].masked_fill(view.hidden[..., None], 0.0)
            return rotary_angles(places, spec.value_periods, self.head_width), None
        if not spec.coordinates or spec.position_encoding not in ("rotary", "both"):
            return None, None
        assert view.tokens.positions is not None
        own = rotary_angles(view.tokens.positions, spec.periods, self.head_width)
        if view.ask_positions is None:
            return own, None
        return own, rotary_angles(view.ask_positions, spec.periods, self.head_width)


class PairBias(nn.Module):
    """A bias of attention from distances: Gaussian bumps of the distance, one weight per head and bump.

    Invariant to rotation and translation. Distances to or between tokens of hidden place give no bias. The idea
    is that of Uni-Mol (Zhou et al. 2023) and Graphormer (Ying et al. 2021, arXiv:2106.05234).
    """

    def __init__(self, spec: TokenSpec, heads: int, bumps: int = 32) -> None:
        super().__init__()
        self.from_values = spec.rotary_from_values or not spec.coordinates or spec.channels == 3
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(0, 4, bumps), persistent=False)
        self.mix = nn.Linear(bumps, heads, bias=False)
        nn.init.normal_(self.mix.weight, std=0.02)

    def forward(self, view: View) -> Tensor:
        """(B, H, M, M)."""
        tokens = view.tokens
        places = tokens.values if self.from_values else tokens.positions
        assert places is not None
        places = places[..., :3]
        known = ~view.hidden if self.from_values else torch.ones_like(view.hidden)
        distance = (places[:, :, None] - places[:, None]).square().sum(-1).add(1e-12).sqrt()
        width = self.centres[1] - self.centres[0]
        bumps = torch.exp(-0.5 * ((distance[..., None] - self.centres) / width).square())
        both = (known[:, :, None] & known[:, None])[..., None]
        return self.mix((bumps * both).to(self.mix.weight.dtype)).permute(0, 3, 1, 2)
