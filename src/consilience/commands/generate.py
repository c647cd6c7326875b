"""Generate new records with a trained model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.commands.conditions import COMPARED, nearness, parse_conditions
from consilience.commands.console import say
from consilience.commands.drawing import Kept, draw
from consilience.commands.given import shown_by
from consilience.commands.models import find_data, open_model, science_of
from consilience.commands.parser import CommandParser
from consilience.core.errors import ConsilienceError
from consilience.core.files import replacing, try_writing

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from consilience.core.batch import TokenBatch
    from consilience.core.embed import Precision
    from consilience.core.model import FoundationModel
    from consilience.core.sampling import UnmaskOrder
    from consilience.domains.base import Domain

DRAWS = 100
"""Records of a command that does not say how many; one for each record of `--given`."""


def generate(
    model: "FoundationModel | str | Path",
    n: int,
    *,
    out: str | Path | None = None,
    domain: str | None = None,
    seed: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: int | None = None,
    unmask_order: "UnmaskOrder" = "random",
    pattern: str | None = None,
    scaffold: str | None = None,
    conditions: Mapping[str, float] | None = None,
    guidance: float = 0.0,
    given: str | Path | None = None,
    batch_size: int = 256,
    precision: "Precision" = "32-true",
    device: str = "auto",
    progress: bool = False,
) -> Any:
    """Generate new records. With `out`, a command that was stopped goes on with the same numbers when given again.

    Args:
        model: the folder of a run; in Python also a loaded model.
        n: how many; with `given` for each record of it. On the command line 100, with --given one, where left out.
        out: where to write; the ending chooses the format (.smi, .csv, .h5ad, .fits, .xyz ...). Tables of molecules
            (.csv, .parquet) say what is valid, how often it occurs, and its log-likelihood where there is one.
        domain: the science; needed only where the model knows several.
        seed: of all randomness; the same seed gives the same records.
        temperature: below 1 sharpens, 0 takes the likeliest; 1 where left out.
        top_k: draw symbols from the k likeliest alone.
        top_p: draw symbols from the smallest set of the likeliest that holds this share of the probability.
        steps: of samplers that can choose it (unmasking, transport along the flow).
        unmask_order: of masked objectives: random, or confidence (the surest symbol first).
        pattern: what every molecule must hold, with * for what is filled: 'c1ccc(*)cc1', 'CC*{2,8}N', or 'CCO*' for
            next-token, which only goes on from a beginning.
        scaffold: a SMILES with attachment points * that every molecule is built on.
        conditions: properties that the records are to have, among those that the model was trained with, such as
            --condition logp=2.5 qed=0.8; tables say what was asked and, where it can be computed, what came of it.
        guidance: how far predictions are pushed towards the conditions: (1 + w) * with - w * without; 0 does not push.
        given: a file of the other modality, for a model that was trained on pairs: every new record is drawn given one
            record of it (--domain molecules --given conformers.sdf); tables name that in a column.
        batch_size: records at a time; part of what a seed means.
        precision: 32-true, or bf16-mixed (faster where the hardware has it, other records of the same kind).
        device: cpu, cuda, or auto: a GPU when there is one.
        progress: show a bar with the rate and the time left.

    Returns:
        The records, in the type of their science.
    """
    options: dict[str, Any] = {"steps": steps, "top_k": top_k, "top_p": top_p, "unmask_order": unmask_order}
    options["guidance"] = guidance
    options |= {} if temperature is None else {"temperature": temperature}
    asked = Asked(
        n=n,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        pattern=pattern,
        scaffold=scaffold,
        conditions=dict(conditions or {}),
        given=None if given is None else find_data(given),
        options=options,
    )
    return produce(model, asked, out=out, domain=domain, device=device, progress=progress).records


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to generate; checked when it is built.

    Args:
        n: records.
        seed: of all randomness.
        batch_size: records at a time.
        precision: see `generate`.
        pattern: see `generate`.
        scaffold: see `generate`.
        options: of the sampler.
        conditions: see `generate`.
        given: see `generate`.
    """

    n: int
    seed: int
    batch_size: int
    pattern: str | None
    scaffold: str | None
    options: Mapping[str, Any]
    precision: "Precision" = "32-true"
    conditions: Mapping[str, float] = field(default_factory=dict)
    given: Path | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConsilienceError(f"n must be at least 1, not {self.n}")
        if self.batch_size < 1:
            raise ConsilienceError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.pattern is not None and self.scaffold is not None:
            raise ConsilienceError("give a pattern or a scaffold, not both")
        from consilience.core.embed import check_precision
        from consilience.core.options import check_seed, check_whole
        from consilience.core.sampling import Sampling

        check_whole("n", self.n)
        check_whole("batch_size", self.batch_size)
        check_seed(self.seed)
        check_precision(self.precision)
        Sampling.of(dict(self.options))


@dataclass(frozen=True, kw_only=True)
class Produced:
    """Generated records, with what to say of them.

    Args:
        records: in the type of their science.
        summary: one line.
    """

    records: Any
    summary: str


def produce(
    model: "FoundationModel | str | Path",
    asked: Asked,
    *,
    out: str | Path | None,
    domain: str | None,
    device: str,
    progress: bool,
) -> Produced:
    """Generate and write what is asked; see `generate`."""
    network, folder = open_model(model, device)
    target = None if out is None else Path(out).expanduser()
    needs_science = target is not None or asked.scaffold is not None
    science = science_of(network, folder, domain) if needs_science else None
    name = network.domain_of(domain) if science is None else science.name
    shown = None if asked.given is None else shown_by(network, folder, name, asked.given, asked.n)
    if shown is not None:
        asked = replace(asked, n=shown.tokens.size)
    pattern = asked.pattern
    if asked.scaffold is not None and science is not None:
        pattern = _pattern_of(network, science, asked.scaffold)
    options = {**asked.options, "pattern": pattern}
    told = network.conditions_of(name).rows(asked.conditions, asked.n) if asked.conditions else None
    first = None if told is None else told[:1]
    beside = None if shown is None else shown.take(range(1))
    # Options are refused before the work, which is short where steps can be chosen.
    trial = {**options, "steps": 1} if network.objective.has_steps else options
    one = network.generate_tokens(1, domain=name, conditions=first, context=beside, **trial)
    if target is None or science is None:
        tokens = draw(network, asked, name, options, progress=progress, told=told, given=shown)
        return Produced(records=network.tokenizers[name].decode(tokens), summary="")
    decode = network.tokenizers[name].decode
    try_writing(target, lambda path: science.write_records(decode(one), path))
    several = folder is not None and asked.n > asked.batch_size
    kept = Kept.of(target, folder, asked, name, network.device.type) if several and folder else None
    tokens = draw(network, asked, name, options, progress=progress, told=told, given=shown, kept=kept)
    records = decode(tokens)
    columns: dict[str, Any] = {} if shown is None else {"given": shown.ids}
    summary = science.summary(records)
    held = science.holds(records, pattern=asked.pattern, scaffold=asked.scaffold) if pattern else None
    if held is not None:
        summary += f", {int(held.sum())} hold the scaffold ({held.mean():.1%})"
        columns["holds_scaffold"] = held
    if told is not None:

        def unconditional() -> Any:
            fewer, plain = replace(asked, n=min(asked.n, COMPARED)), {**options, "guidance": 0.0}
            part = None if shown is None else shown.first(fewer.n)
            return decode(draw(network, fewer, name, plain, progress=progress, given=part))

        near = nearness(science, network.conditions_of(name), asked.conditions, records, unconditional)
        columns |= near.columns
        summary += f"; {near.line}"
    if target.suffix in science.keeps_columns:
        columns |= _log_likelihoods(network, name, tokens, asked.seed)
    with replacing(target) as part:
        science.write_records(records, part, columns)
    Kept.forget(target)
    return Produced(records=records, summary=summary)


def _pattern_of(model: "FoundationModel", science: "Domain", scaffold: str) -> str:
    """The first pattern of a scaffold that this model can fill."""
    from consilience.core.generation import ending_of

    refusal: ConsilienceError | None = None
    for pattern in science.scaffold_patterns(scaffold):
        try:
            ending_of(pattern, model.tokenizers[science.name], model.objective)
            return pattern
        except ConsilienceError as error:
            refusal = refusal or error
    raise ConsilienceError(f"--scaffold, written as a {refusal}") from refusal


def _log_likelihoods(
    model: "FoundationModel", domain: str, tokens: "TokenBatch", seed: int
) -> dict[str, Any]:
    """A column of log p in nats, named after what it is; none where the objective has no likelihood."""
    from consilience.core.log_likelihood import likelihood_of, of_tokens

    if likelihood_of(model, domain) == "surrogate":
        return {}
    found = of_tokens(model, tokens, domain, seed=seed)
    return {"log_likelihood" if found.kind == "exact" else "log_likelihood_bound": found.values}


def new_parser() -> CommandParser:
    """The options of `consilience generate`."""
    from consilience.core.sampling import UnmaskOrder

    parser = CommandParser("generate", generate, "MODEL --n N --out FILE [options]")
    parser.option("model", type=str, metavar="MODEL")
    parser.option("--n", type=int | None, default=None)
    parser.option("--out", type=str, required=True, metavar="FILE")
    parser.option("--domain", type=str | None)
    parser.option("--seed", type=int)
    parser.option("--temperature", type=float | None)
    parser.option("--top-k", type=int | None)
    parser.option("--top-p", type=float | None)
    parser.option("--steps", type=int | None)
    parser.option("--unmask-order", type=UnmaskOrder)
    parser.option("--pattern", type=str | None)
    parser.option("--scaffold", type=str | None)
    parser.add_argument(
        "--condition", nargs="+", type=str, metavar="NAME=NUMBER", help=parser.helps["conditions"]
    )
    parser.option("--guidance", type=float)
    parser.option("--given", type=str | None, metavar="FILE")
    parser.option("--batch-size", type=int)
    parser.option("--precision", type=str)
    parser.option("--device", type=str)
    return parser


def run(options: "Namespace") -> None:
    """`consilience generate`."""
    chosen = options.as_dict()
    plain = {key: chosen.pop(key) for key in ("model", "out", "domain", "device")}
    temperature = chosen.pop("temperature")
    own = {key: chosen.pop(key) for key in ("steps", "top_k", "top_p", "unmask_order", "guidance")}
    own |= {} if temperature is None else {"temperature": temperature}
    conditions = parse_conditions(chosen.pop("condition"))
    given = chosen.pop("given")
    chosen["n"] = chosen["n"] if chosen["n"] is not None else DRAWS if given is None else 1
    chosen["given"] = None if given is None else find_data(given)
    asked = Asked(**chosen, conditions=conditions, options=own)
    made = produce(plain.pop("model"), asked, **plain, progress=True)
    say(f"{options.out}: {made.summary}")
