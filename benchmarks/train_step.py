"""A training step (forward, loss, backward, AdamW) of equal transformers: ours, x-transformers, Hugging Face, PyTorch.

Same work: width 256, 8 layers, 8 heads, a vocabulary of 512, 4,096 tokens in samples of equal length, causal
next-token or 15% masked tokens, the same fused AdamW. The blocks have equally many weights; ours has 5 to 8% more in
all (the modulation by time), which counts against us.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import Report, installed, options, race
from torch import Tensor, nn

from consilience.core.batch import TokenBatch, TokenSpec
from consilience.core.model import FoundationModel
from consilience.core.objectives import Masked, NextToken
from consilience.core.synthetic import MarkovChain
from consilience.core.synthetic_tokenizer import SyntheticTokenizer
from consilience.core.transformer import CoreConfig

VOCABULARY, RATE, TOKENS = 512, 0.15, 4096
Step = Callable[[], Any]


class Symbols(SyntheticTokenizer):
    """Symbols 0..V-1 in sequence: what a molecule's string is to the core."""

    def __init__(self, length: int) -> None:
        super().__init__(MarkovChain(length=length))

    @property
    def spec(self) -> TokenSpec:
        """One coordinate, V symbols."""
        return TokenSpec(name="symbols", vocabulary=VOCABULARY, coordinates=1, periods=(2.0, 2048.0))


def ours(
    kind: str, size: dict[str, int], ids: Tensor, compile: bool
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Through the public path: FoundationModel.loss on a TokenBatch."""
    objective = NextToken() if kind == "decoder" else Masked(rate=RATE)
    core = CoreConfig(width=size["width"], depth=size["depth"], heads=size["heads"])
    b, n = ids.shape
    model = FoundationModel(core, {"symbols": Symbols(n)}, objective)
    if compile:
        model.core.compile(dynamic=False)
    tokens = TokenBatch(
        length=torch.full((b,), n),
        ids=ids,
        positions=torch.arange(n, dtype=torch.float32)[None, :, None].expand(b, n, 1).contiguous(),
    )
    generator = torch.Generator().manual_seed(0)
    return model, lambda: model.loss({"symbols": tokens}, generator)["symbols"].value


def masked(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with 15% replaced by a mask symbol, and labels (-100 elsewhere)."""
    hidden = torch.rand(ids.shape) < RATE
    return ids.masked_fill(hidden, VOCABULARY), ids.masked_fill(~hidden, -100)


def x_transformers(
    kind: str, size: dict[str, int], ids: Tensor, compile: bool
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """TransformerWrapper with rotary positions, RMSNorm, squared ReLU and fused attention."""
    from x_transformers import Decoder, Encoder, TransformerWrapper

    layers = (Decoder if kind == "decoder" else Encoder)(
        dim=size["width"], depth=size["depth"], heads=size["heads"], attn_dim_head=size["width"] // size["heads"],
        attn_flash=True, rotary_pos_emb=True, use_rmsnorm=True, ff_relu_squared=True,
    )  # fmt: skip
    model = TransformerWrapper(
        num_tokens=VOCABULARY + 1, max_seq_len=ids.shape[1], attn_layers=layers, use_abs_pos_emb=False
    )
    run = torch.compile(model, dynamic=False) if compile else model

    def loss() -> Tensor:
        if kind == "decoder":
            logits = run(ids)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        seen, labels = masked(ids)
        return F.cross_entropy(run(seen).flatten(0, 1), labels.flatten())

    return model, loss


def hugging_face(
    kind: str, size: dict[str, int], ids: Tensor, compile: bool
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """GPT-2 (decoder) or BERT (encoder) with fused attention, without dropout."""
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    n = ids.shape[1]
    if kind == "decoder":
        model: nn.Module = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY + 1, n_positions=n, n_embd=size["width"], n_layer=size["depth"],
                n_head=size["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
                attn_implementation="sdpa",
            )
        )  # fmt: skip
    else:
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=VOCABULARY + 1, max_position_embeddings=n, hidden_size=size["width"],
                num_hidden_layers=size["depth"], num_attention_heads=size["heads"],
                intermediate_size=4 * size["width"], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
            )
        )  # fmt: skip
    run = torch.compile(model, dynamic=False) if compile else model

    def loss() -> Tensor:
        if kind == "decoder":
            return run(ids, labels=ids).loss
        seen, labels = masked(ids)
        return run(seen, labels=labels).loss

    return model, loss


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder`, pre-norm, with learned positions and a linear head."""

    def __init__(self, kind: str, size: dict[str, int], n: int) -> None:
        super().__init__()
        width = size["width"]
        layer = nn.TransformerEncoderLayer(
            width, size["heads"], 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.symbols, self.places = nn.Embedding(VOCABULARY + 1, width), nn.Embedding(n, width)
        self.layers = nn.TransformerEncoder(
            layer, size["depth"], norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, VOCABULARY)
        self.causal = kind == "decoder"
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(n))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N) -> (B, N, D)."""
        x = self.symbols(ids) + self.places.weight
        mask = self.mask if self.causal else None
        return self.layers(x, mask=mask, is_causal=self.causal)


def torch_encoder(
    kind: str, size: dict[str, int], ids: Tensor, compile: bool
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """PyTorch's own; logits at the scored positions only."""
    model = TorchEncoder(kind, size, ids.shape[1])
    run = torch.compile(model, dynamic=False) if compile else model

    def loss() -> Tensor:
        if kind == "decoder":
            return F.cross_entropy(model.head(run(ids)[:, :-1].flatten(0, 1)), ids[:, 1:].flatten())
        seen, labels = masked(ids)
        scored = labels >= 0
        return F.cross_entropy(model.head(run(seen)[scored]), labels[scored])

    return model, loss


PEERS = {
    "consilience": ours,
    "x-transformers": x_transformers,
    "Hugging Face": hugging_face,
    "nn.TransformerEncoder": torch_encoder,
}


def step(model: nn.Module, loss: Callable[[], Tensor], bf16: bool) -> Step:
    """One optimiser step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def work() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def products(size: dict[str, int], b: int, n: int, dtype: torch.dtype) -> Step:
    """The bare matrix products of a step by `torch.matmul`: forward, and twice that backward; no element-wise work."""
    width, heads = size["width"], size["heads"]
    x, wide = torch.randn(b * n, width, dtype=dtype), torch.randn(b * n, 4 * width, dtype=dtype)
    three = torch.randn(b * n, 3 * width, dtype=dtype)
    w_qkv, w_out = torch.randn(3 * width, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    w_in, w_back = torch.randn(4 * width, width, dtype=dtype), torch.randn(width, 4 * width, dtype=dtype)
    q = torch.randn(b * heads, n, width // heads, dtype=dtype)
    scores = torch.randn(b * heads, n, n, dtype=dtype)

    def work() -> None:
        for _ in range(size["depth"]):
            for left, weight, out in ((x, w_qkv, three), (x, w_out, x), (x, w_in, wide), (wide, w_back, x)):
                left @ weight.t()
                out @ weight  # into the input
                out.t() @ left  # into the weight
            for _ in range(3):
                q @ q.transpose(1, 2)
                scores @ q

    return work


def products_onednn(size: dict[str, int], b: int, n: int) -> Step:
    """The same products in float32 by oneDNN where it is at hand (linear layers), as in `core.kernels`."""
    from consilience.core import kernels

    plain = products({**size, "depth": 0}, b, n, torch.float32)
    del plain
    width, heads = size["width"], size["heads"]
    x, wide = torch.randn(b * n, width), torch.randn(b * n, 4 * width)
    three = torch.randn(b * n, 3 * width)
    shapes = ((x, 3 * width, three), (x, width, x), (x, 4 * width, wide), (wide, width, x))
    weights = [torch.randn(m, left.shape[1]) for left, m, _ in shapes]
    q = torch.randn(b * heads, n, width // heads)
    scores = torch.randn(b * heads, n, n)
    backward = torch.ops.aten.mkldnn_linear_backward_weights.default

    def work() -> None:
        for _ in range(size["depth"]):
            for (left, _, out), weight in zip(shapes, weights):
                kernels._product(left, weight)
                kernels._product(out, weight.t())
                backward(out.to_mkldnn(), left.to_mkldnn(), weight, False)[0].to_dense()
            for _ in range(3):
                q @ q.transpose(1, 2)
                scores @ q

    return work


def parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Run the race in every setting and write the table."""
    chosen = options(__doc__, rounds=7, compile=True, compile_long=False, only="")
    size = {"width": 64, "depth": 2, "heads": 4} if chosen.quick else {"width": 256, "depth": 8, "heads": 8}
    tokens = 512 if chosen.quick else TOKENS
    report = Report(
        "train_step",
        "Training step: ours beside peers of the same size",
        [
            "model",
            "tokens a sample",
            "precision",
            "compiled",
            "who",
            "parameters",
            "ms",
            "time / ours",
            "time / products",
        ],
        packages=("x-transformers", "transformers"),
        notes=[
            f"{size}, {tokens} tokens a step; forward + loss + backward + fused AdamW; median over rounds [quartiles].",
            "time / ours: above 1 means that we are faster. Reach: 1.15 in float32, 1.3 compiled, 1.3 in bf16.",
            "time / products: over the same matrix products alone by torch.matmul (linear layers and both products of "
            "attention, forward + 2 x backward). Reach for ours: 1.2 in float32, 1.6 in bf16.",
            "products, oneDNN: the linear layers' products by the kernel that ours uses in float32 on a CPU.",
        ],
    )
    missing = [
        name
        for name, package in (("x-transformers", "x_transformers"), ("Hugging Face", "transformers"))
        if not installed(package)
    ]
    for compile in (False, True) if chosen.compile else (False,):
        for bf16 in (False, True):
            for kind in ("decoder", "encoder"):
                for n in (64, 512):
                    setting = f"{kind}-{n}-{'bf16' if bf16 else 'fp32'}-{'compiled' if compile else 'eager'}"
                    if chosen.only and chosen.only not in setting:
                        continue
                    if compile and n > 64 and not chosen.compile_long:  # minutes of compiling each
                        continue
                    torch.manual_seed(0)
                    ids = torch.randint(VOCABULARY, (max(1, tokens // n), n))
                    racers, count = {}, {}
                    for name, build in PEERS.items():
                        if name not in missing:
                            model, loss = build(kind, size, ids, compile)
                            racers[name], count[name] = step(model, loss, bf16), parameters(model)
                    dtype = torch.bfloat16 if bf16 else torch.float32
                    racers["products"] = products(size, *ids.shape, dtype)
                    if not bf16:
                        racers["products, oneDNN"] = products_onednn(size, *ids.shape)
                    times = race(racers, rounds=2 if chosen.quick else chosen.rounds, warm=2)
                    for name in racers:
                        report.add(
                            kind, n, "bf16" if bf16 else "float32", "yes" if compile else "no", name,
                            count.get(name, ""), 1000 * times.median(name), times.ratio(name, "consilience"),
                            times.ratio(name, "products"),
                        )  # fmt: skip
    report.notes += [f"{name} is not installed" for name in missing]
    report.write(chosen.out, keys=4 if chosen.only else 0)


if __name__ == "__main__":
    main()
