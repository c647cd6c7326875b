"""Point clouds as tokens: a token is a point (content: its place; address: its type and slot) or a patch.

    water   ->   H at slot 0: (-0.76, -0.39, 0.00)    O at slot 1: (0.00, 0.20, 0.00)    H at slot 2: ...

Coordinates are centred and kept in their own unit (Å for atoms); `TokenSpec.value_scale` standardises them by
the spread of the training clouds. Rows are first brought into one canonical sequence, so that tokens do not
depend on how the points were listed (except under order="given").
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError, UnreadableRecordError
from consilience.core.records import Failure
from consilience.core.tokenizer import Tokenizer
from consilience.core.written import written
from consilience.tokenizers import point_decode, point_orders
from consilience.tokenizers.point_bonds import BondTable
from consilience.tokenizers.point_checks import codes_of, limits, problems
from consilience.tokenizers.point_frames import centred, principal_frames, random_half_turns, random_rotations
from consilience.tokenizers.point_options import PointOptions, PointState, measure, point_spec
from consilience.tokenizers.point_patches import make_patches
from consilience.tokenizers.point_records import PointCloud, PointTable, is_cloud, readable

EXAMPLES = 512
"""Training clouds whose composition (types in order, or patch centres) is kept for generation."""
PATCH_EXAMPLES = 64
PADDED_POINTS = 2**15
"""Points, padding included, that are cut into patches in one go: what fits the cache is fastest."""


class PointTokenizer(Tokenizer[Sequence[PointCloud]]):
    """Point clouds <-> tokens. Built by `fit` or `from_state`.

    Args:
        options: see `PointOptions`.
        learned: see `PointState`.
    """

    science: ClassVar[str] = "points"
    takes: ClassVar[str] = "a list of PointCloud, ASE Atoms or (n, 3) arrays"

    def __init__(self, *, options: PointOptions, learned: PointState) -> None:
        self.options = options
        self.learned = learned
        self._spec = point_spec(options, learned)

    @property
    def spec(self) -> TokenSpec:
        """Values: x, y, z (then features) a point; or the same for the k points of a patch, nearest first."""
        return self._spec

    @classmethod
    def fit(cls, records: Sequence[PointCloud], **options: Any) -> Self:
        """Learn types, scale and compositions. Unusable clouds are passed over; `check` names them."""
        config = PointOptions.build(options)
        table, refused = readable(records)
        found = problems(table)
        usable = np.array([i for i in range(len(table)) if i not in found], dtype=np.int64)
        if not len(usable):
            reasons = [*refused.values(), *found.values()]
            why = f"the first is refused: {reasons[0]}" if reasons else "there are none"
            raise ConsilienceError(f"points: no usable cloud among the {len(records)} to fit on; {why}")
        table = table.take(usable) if len(usable) < len(table) else table
        if config.tokens == "patches" and table.codes is not None and config.types != "ignore":
            raise ConsilienceError(
                "points: a patch mixes points of several types; choose types='ignore' or tokens='points'"
            )
        if config.features == "content" and table.features is None:
            raise ConsilienceError("points: features='content', but the training clouds have no features")
        learned = measure(table, config)
        beyond = limits(table, config, learned)
        kept = [i for i in range(len(table)) if i not in beyond]
        if not kept:
            raise ConsilienceError(f"points: no usable cloud to fit on; the first: {beyond[0]}")
        examples = table.take(_spaced(kept, EXAMPLES))
        return cls(options=config, learned=cls(options=config, learned=learned)._with_examples(examples))

    def _with_examples(self, table: PointTable) -> PointState:
        """The state with what generation starts from: lengths, compositions or centres of these clouds."""
        tokens = self.encode(table)
        lengths = tuple(int(length) for length in tokens.length)
        if self.options.tokens == "points":
            learned = replace(self.learned, lengths=lengths)
            if self.options.bonds and table.bonds is not None:
                bonds = tuple(tuple(map(tuple, table.bonds[i].tolist())) for i in range(len(table)))
                learned = replace(learned, bonds=bonds)
            if tokens.address is None:
                return learned
            rows = [tuple(row[:length].tolist()) for row, length in zip(tokens.address, lengths)]
            return replace(learned, compositions=tuple(rows))
        assert tokens.values is not None
        offsets = tokens.values.reshape(*tokens.values.shape[:2], self.options.patch_size, -1)[..., :3]
        scale = float(offsets[tokens.real].double().square().mean().sqrt())
        few = _spaced(range(len(lengths)), PATCH_EXAMPLES)
        centres = tuple(
            tuple(tuple(round(x, 5) for x in place) for place in tokens.positions[i, : lengths[i]].tolist())
            for i in few
            if tokens.positions is not None
        )
        return replace(
            self.learned, value_scale=scale or 1.0, lengths=tuple(lengths[i] for i in few), centres=centres
        )

    def encode(
        self, records: Sequence[PointCloud], *, generator: torch.Generator | None = None
    ) -> TokenBatch:
        """Tokens: values (B, N, C); address or ids (B, N) of types; positions: slots or patch centres.

        Raises:
            UnreadableRecordError: for the first cloud that `check` would name.
        """
        table = PointTable.of(records)
        if not len(table):
            raise ConsilienceError("points: no records to tokenize")
        refused = problems(table) | limits(table, self.options, self.learned)
        if refused:
            raise UnreadableRecordError(*min(refused.items()))
        turns = self._turns(len(table), generator)
        if self.options.tokens == "patches":
            return self._patches(table, turns, generator).validate(self.spec)
        values, codes, _ = self._arrange(table, turns, generator)
        typed = torch.from_numpy(codes) if self.learned.types else None
        by_content = self.options.types == "content"
        positions = None
        if self.options.has_slots:
            slots = np.where(table.real, np.arange(values.shape[1])[None, :], 0)
            positions = torch.from_numpy(slots[..., None].astype(np.float32))
        pairs = None
        if self.options.bonds and table.bonds is not None:
            pairs = torch.from_numpy(table.bonds.pairs(values.shape[1]))
        return TokenBatch(
            length=torch.from_numpy(table.sizes.astype(np.int64)),
            values=torch.from_numpy(values.astype(np.float32)),
            ids=typed if by_content else None,
            address=None if by_content else typed,
            positions=positions,
            pairs=pairs,
        ).validate(self.spec)

    def is_record(self, record: Any) -> bool:
        """What `as_cloud` can make a cloud of."""
        return is_cloud(record)

    def _turns(self, n: int, generator: torch.Generator | None) -> np.ndarray | None:
        """Random rotations (n, 3, 3) of training; None where clouds stay as they are."""
        if generator is None or self.options.augment == "none":
            return None
        draw = random_half_turns if self.options.align == "principal" else random_rotations
        return draw(n, generator)

    def _arrange(
        self, table: PointTable, turns: np.ndarray | None, generator: torch.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clouds centred, turned, in order: values (B, N, 3 + F) float64, codes and real (B, N)."""
        real, options = table.real, self.options
        x = table.padded(table.positions).astype(np.float64)
        codes = table.padded(codes_of(table, self.learned.types))
        features = None
        if self.learned.feature_shift:
            assert table.features is not None
            # In the unit of coordinates, so that one scale standardises both.
            columns = (table.features - self.learned.feature_shift) / self.learned.feature_scale
            features = table.padded(columns * self.learned.value_scale)
        if options.order != "given":
            extra = (
                codes[..., None] if features is None else np.concatenate([codes[..., None], features], axis=2)
            )
            order = point_orders.canonical_order(x, real, extra)
            x, codes = point_orders.gather_rows(x, order), point_orders.gather_rows(codes, order)
            features = None if features is None else point_orders.gather_rows(features, order)
        x = centred(x, real)
        if options.align == "principal":
            x = x @ principal_frames(x)
        if turns is not None:
            x = x @ turns
        if options.tokens == "points" and options.order != "given":
            order = self._order(x, real, generator)
            x, codes = point_orders.gather_rows(x, order), point_orders.gather_rows(codes, order)
            features = None if features is None else point_orders.gather_rows(features, order)
        return x if features is None else np.concatenate([x, features], axis=2), codes, real

    def _order(self, x: np.ndarray, real: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        """The option's order of places (B, N, 3); equal places keep the order of their rows."""
        keys: np.ndarray
        if self.options.order == "radial":
            keys = np.square(x).sum(2)
        elif self.options.order == "random":
            keys = point_orders.hash_codes(real.shape)
            if generator is not None:
                keys = torch.rand(real.shape, generator=generator, device=generator.device).cpu().numpy()
        else:
            curve = (
                point_orders.hilbert_codes if self.options.order == "hilbert" else point_orders.morton_codes
            )
            keys = curve(point_orders.grid_cells(x, real))
        return point_orders.sort_rows(keys, real)

    def _patches(
        self, table: PointTable, turns: np.ndarray | None, generator: torch.Generator | None
    ) -> TokenBatch:
        """Neighbourhoods as tokens, a bounded number of clouds at a time, equal sizes together."""
        options, b = self.options, len(table)
        lengths = np.minimum(table.sizes, options.n_patches)
        width = int(lengths.max())
        values = np.zeros((b, width, self.spec.channels), dtype=np.float32)
        places = np.zeros((b, width, 3), dtype=np.float32)
        by_size = np.argsort(table.sizes, kind="stable")
        start = 0
        while start < b:
            stop = start + max(1, PADDED_POINTS // int(table.sizes[by_size[start]]))
            part = by_size[start:stop]
            part = part[
                table.sizes[part] <= max(2 * table.sizes[part[0]], 64)
            ]  # little padding within a chunk
            start += len(part)
            self._cut(
                table.take(part), None if turns is None else turns[part], generator, part, values, places
            )
        padding = np.arange(width)[None, :] >= lengths[:, None]
        values[padding], places[padding] = 0, 0
        return TokenBatch(
            length=torch.from_numpy(lengths.astype(np.int64)),
            values=torch.from_numpy(values),
            positions=torch.from_numpy(places),
        )

    def _cut(
        self,
        table: PointTable,
        turns: np.ndarray | None,
        generator: torch.Generator | None,
        rows: np.ndarray,
        values: np.ndarray,
        places: np.ndarray,
    ) -> None:
        """Cut these clouds into patches, in the option's order of their centres, and write them to `rows`."""
        clouds, _, real = self._arrange(table, turns, generator)
        clouds = clouds.astype(np.float32)
        centres, members = make_patches(
            clouds[..., :3], real, self.options.n_patches, self.options.patch_size
        )
        taken = np.arange(centres.shape[1])[None, :] < table.sizes[:, None]
        middle = point_orders.gather_rows(clouds[..., :3], centres)
        if self.options.order != "given":
            order = self._order(middle.astype(np.float64), taken, generator)
            middle, members = (
                point_orders.gather_rows(middle, order),
                point_orders.gather_rows(members, order),
            )
        local = point_orders.gather_rows(clouds, members)
        local[..., :3] -= middle[:, :, None]
        values[rows, : members.shape[1]] = local.reshape(*members.shape[:2], -1)
        places[rows, : members.shape[1]] = middle

    def decode(self, tokens: TokenBatch) -> list[PointCloud]:
        """Clouds from tokens, centred, points in token order.

        Tokens of points give every point back, up to the centroid, a rotation under `align` and float32.
        Tokens of patches give the points that some patch holds, once each.
        """
        return point_decode.clouds(tokens, self.options, self.learned)

    def lengths(self, records: Sequence[PointCloud]) -> np.ndarray:
        """(n,) int64: points, or patches."""
        sizes = PointTable.of(records).sizes.astype(np.int64)
        return np.minimum(sizes, self.options.n_patches) if self.options.tokens == "patches" else sizes

    def check(self, records: Sequence[PointCloud]) -> list[Failure]:
        """Clouds that cannot be tokenized: one point, NaN, coinciding atoms, unknown type, too large."""
        table, refused = readable(records)
        places = np.array([i for i in range(len(records)) if i not in refused], dtype=np.int64)
        found = problems(table)
        found = limits(table, self.options, self.learned) | found
        refused |= {int(places[i]): reason for i, reason in found.items()}
        return [Failure(index=i, id="", reason=reason) for i, reason in sorted(refused.items())]

    def template(self, n: int, *, generator: torch.Generator, open_end: bool = False) -> TokenBatch:
        """n samples to fill: lengths, types (as addresses) or patch centres of random training clouds.

        `objective` plays no part: no symbol ends a cloud, so the length is part of what is given.
        """
        drawn = torch.randint(len(self.learned.lengths), (n,), generator=generator, device=generator.device)
        picks = drawn.cpu().tolist()
        length = torch.tensor([self.learned.lengths[i] for i in picks], dtype=torch.int64)
        width = int(length.max()) if n else 0
        address = positions = pairs = None
        if self.learned.bonds:
            parts = [np.array(self.learned.bonds[i], dtype=np.int64).reshape(-1, 3) for i in picks]
            pairs = torch.from_numpy(BondTable.joined(parts).pairs(width))
        if self.learned.compositions:
            address = torch.zeros(n, width, dtype=torch.int64)
            for row, i in enumerate(picks):
                address[row, : int(length[row])] = torch.tensor(self.learned.compositions[i])
        if self.learned.centres:
            positions = torch.zeros(n, width, 3)
            for row, i in enumerate(picks):
                positions[row, : int(length[row])] = torch.tensor(self.learned.centres[i])
        real = torch.arange(width)[None, :] < length[:, None]
        if self.options.has_slots:
            positions = (torch.arange(width)[None, :] * real)[..., None].float()
        return TokenBatch(
            length=length,
            values=torch.zeros(n, width, self.spec.channels),
            ids=torch.zeros(n, width, dtype=torch.int64) if self.spec.vocabulary else None,
            address=address,
            positions=positions,
            pairs=pairs,
        ).validate(self.spec)

    def describe(self, record: PointCloud) -> str:
        """The first tokens of one cloud, with their addresses and contents."""
        return point_decode.description(self.encode([record]), self.options, self.learned)

    def state(self) -> dict[str, Any]:
        """Options and everything learned."""
        options = written(self.options) | {"periods": list(self.options.periods)}
        return {"options": options, "learned": self.learned.as_json()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        return cls(
            options=PointOptions.build(state["options"]), learned=PointState.from_json(state["learned"])
        )


def _spaced(items: Sequence[int], most: int) -> list[int]:
    """At most this many of the items, evenly spaced."""
    picks = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[int(i)] for i in picks]
