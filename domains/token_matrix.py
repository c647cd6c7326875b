"""Tokens as a matrix of fixed width, and their principal components: what a linear method sees of a tokenizer.

The same row for every science, between "nothing" and a transformer: whatever a pre-trained core adds must show above
a PCA of the tokens that it was given.
"""

from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.errors import ConsilienceError
from consilience.core.records import Collection, take_records
from consilience.core.tokenizer import Tokenizer
from consilience.domains.base import Baseline

COMPONENTS = 96
"""As many as the quick study's core is wide."""
_CHUNK = 4096
_FLAT = 1e-8
"""Components with less than this part of the first one's variance are none."""
_PCA_FULL = 500
"""PCA of matrices up to this width is exact; of wider ones by random projections from a fixed seed."""


def token_matrix(tokens: TokenBatch, spec: TokenSpec) -> np.ndarray:
    """(n, d) float32 matrix of the content of tokens.

    * Values as the core sees them (standardised, log1p for counts). Where no sample has an address twice (genes): one
      column per address and channel, absent ones as the value 0 stands. Else (patches, points): by place in the
      sample, padded with 0, and the coordinates of the places where they differ between samples.
    * Values with inverse variance 0 were not measured: 0.
    * Symbols, and addresses that repeat (types of atoms): how often each occurs.

    Args:
        tokens: n samples; `d` depends on the longest and on whether addresses repeat, so give all at once.
        spec: of their tokenizer.
    """
    parts = []
    address = tokens.address if spec.addresses else None
    dense = address is not None and not _repeats(tokens, address)
    if spec.channels:
        assert tokens.values is not None
        values = spec.standardise(tokens.values)
        if tokens.weight is not None:
            values = values.masked_fill(tokens.weight == 0, 0.0)
        if dense:
            assert address is not None
            parts.append(_by_address(tokens, values, address, spec))
        else:
            parts.append(_by_place(tokens, values))
            if tokens.positions is not None and _differs(tokens, tokens.positions):
                parts.append(_by_place(tokens, tokens.positions))
    if spec.vocabulary:
        assert tokens.ids is not None
        parts.append(_counts(tokens, tokens.ids, spec.vocabulary))
    if address is not None and not dense:
        parts.append(_counts(tokens, address, spec.addresses))
    return torch.cat(parts, dim=1).numpy()


def _repeats(tokens: TokenBatch, address: Tensor) -> bool:
    """Whether some sample has two tokens of one address."""
    last = int(address.max()) + 1
    apart = last + torch.arange(tokens.width)
    ordered = torch.where(tokens.real, address, apart).sort(dim=1).values
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


def _by_address(tokens: TokenBatch, values: Tensor, address: Tensor, spec: TokenSpec) -> Tensor:
    """(n, A * C), absent addresses at the value 0 (a gene that was not seen has no counts)."""
    absent = float(spec.standardise(torch.zeros(())))
    found = values.new_full((tokens.size, spec.addresses, spec.channels), absent)
    sample, place = tokens.real.nonzero(as_tuple=True)
    found[sample, address[sample, place]] = values[sample, place]
    return found.flatten(1)


def _by_place(tokens: TokenBatch, values: Tensor) -> Tensor:
    """(n, N * C), 0 at padding."""
    return values.masked_fill(~tokens.real[..., None], 0.0).flatten(1)


def _differs(tokens: TokenBatch, positions: Tensor) -> bool:
    """Whether samples have other coordinates at the same place."""
    first = positions[tokens.length.argmax()]
    return bool(((positions != first) & tokens.real[..., None]).any())


def _counts(tokens: TokenBatch, codes: Tensor, number: int) -> Tensor:
    """(n, number) how often each code occurs among the real tokens."""
    found = torch.zeros(tokens.size, number)
    return found.scatter_add_(1, codes, tokens.real.float())


def pca_of_tokens(
    tokenizer: Tokenizer[Any], collection: Collection, train: np.ndarray, components: int = COMPONENTS
) -> Baseline:
    """Principal components of the token matrix of all records, fitted on the training rows alone.

    Args:
        tokenizer: fitted on the training rows.
        collection: n readable records; tokenized without randomness.
        train: indices of the training rows.
        components: at most.

    Returns:
        The row, with (n, up to `components`) float32 features for a linear read-out.
    """
    train = np.asarray(train)
    if len(train) < 2:
        raise ConsilienceError(
            f"{collection.source}: a PCA needs two training records, not {len(train)}; give more records"
        )
    chunks = np.split(np.arange(len(collection)), range(_CHUNK, len(collection), _CHUNK))
    tokens = [tokenizer.encode(take_records(collection.records, chunk)) for chunk in chunks]
    matrix = token_matrix(TokenBatch.concatenate(tokens), tokenizer.spec)
    size = min(components, len(train) - 1, matrix.shape[1])
    exact = matrix.shape[1] <= _PCA_FULL or size > 0.8 * len(train)
    with threadpool_limits(limits=1):
        pca = PCA(size, svd_solver="full" if exact else "randomized", random_state=0).fit(matrix[train])
        features = pca.transform(matrix).astype(np.float32)
    # A direction without spread in training (a symbol that occurs in no training record) says nothing there, and
    # anything elsewhere.
    kept = pca.explained_variance_ > _FLAT * pca.explained_variance_[0]
    return Baseline(name=f"PCA({kept.sum()}) of tokens", features=features[:, kept])
