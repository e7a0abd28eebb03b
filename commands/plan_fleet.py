"""How many replicas `vlm-trt plan` says, and what they do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from vlm_trt.bundle.config import ModelConfig, within
from vlm_trt.bundle.errors import UsageError
from vlm_trt.commands.replica_costs import measured, of_floors
from vlm_trt.commands.terminal import table
from vlm_trt.engines.gpus import Gpu
from vlm_trt.engines.plan import Plan
from vlm_trt.fleet.costs import Measured
from vlm_trt.fleet.dispatch import BEHIND, by_prefix, least_busy, less_busy
from vlm_trt.fleet.outcome import Figures
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.sizing import Question, Router, Sized, size
from vlm_trt.fleet.workload import Traffic

ABOVE_FLOOR, PICTURES, TEXT_TOKENS, ANSWER_TOKENS = 2.0, 1, 64, 128


@dataclass(frozen=True)
class Options:
    """As they were given; None: not."""

    requests_per_second: float | None = None
    p99_ttft_ms: float | None = None
    profile: Path | None = None
    above_floor: float | None = None
    pictures: int | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    turns: int | None = None
    burst: float | None = None


@dataclass(frozen=True)
class Asked:
    """A fleet that is asked for."""

    question: Question
    replica: str  # what one is, in words
    basis: str  # where what it takes comes from


@dataclass(frozen=True)
class Fleet:
    """What was found."""

    asked: Asked
    sized: Mapping[str, Sized]  # by how requests are sent to replicas
    without: Figures  # of the first of them: while one of them has died


def taken(given: dict[str, Any], target: str | None) -> Options | None:
    """The options of a fleet, out of all that were given; None where no fleet is asked for.

    Raises:
        UsageError: they do not go together.
    """
    options = Options(**{one.name: given.pop(one.name) for one in fields(Options)})
    named = [f"--{name.replace('_', '-')}" for name, value in asdict(options).items() if value is not None]
    if not named:
        return None
    if options.requests_per_second is None:
        raise UsageError(f"{named[0]} is about a fleet; say with --requests-per-second how many it is to answer")
    if options.p99_ttft_ms is None:
        raise UsageError(f"{named[0]} is about a fleet; say with --p99-ttft-ms in which time answers are to begin")
    if options.profile is None and target is None:
        raise UsageError(
            f"{named[0]} needs to know what a replica takes: name its GPU with --target, or give with --profile what "
            "was measured on one"
        )
    if options.profile is not None and options.above_floor is not None:
        raise UsageError("--above-floor is for floors, and --profile says what was measured; give one of them")
    return options


def asked(options: Options, model: ModelConfig, plan: Plan, gpu: Gpu | None) -> Asked:
    """What the options ask.

    Args:
        options: what is asked.
        model: sizes.
        plan: of one replica.
        gpu: of one; None: as the profile says.
    Raises:
        UsageError: the profile or the requests do not go with the model.
    """
    found = None if options.profile is None else _measured(options, model, plan, gpu)
    if found is not None:
        costs = found.costs
        basis = f"as {options.profile} measured it on {found.machine}: {found.backend}, {found.precision}"
    else:
        assert gpu is not None
        times = options.above_floor or ABOVE_FLOOR
        costs = of_floors(model, plan, gpu, times)
        basis = f"{times:g} times the floors of its bytes and operations in {plan.precision}, computed and not measured"
    kind = Kind(costs=costs, slots=plan.limits.max_batch)
    assert options.requests_per_second is not None and options.p99_ttft_ms is not None
    question = Question(_traffic(options, model, plan), options.p99_ttft_ms, kind, plan.limits.max_seq_tokens)
    return Asked(question, "replicas" if gpu is None else gpu.name, basis)


def fleet(asked: Asked) -> Fleet:
    """How many replicas.

    Raises:
        ResourceError: no number of replicas does it, or more than are simulated.
    """
    sized = dict(_sized(asked.question))
    first = next(iter(sized.values()))
    return Fleet(asked, sized, asked.question.figures(first.replicas, less_busy, one_dies=True))


def _sized(question: Question) -> list[tuple[str, Sized]]:
    routers: list[tuple[str, Router]] = [
        ("to the less busy of two", less_busy),
        ("to the least busy of all", least_busy),
    ]
    if question.traffic.turns > 1:
        behind = int(BEHIND * question.kind.slots)
        routers.append(("by prefix, else the least busy", partial(by_prefix, most_behind=behind)))
    return [
        (name + dies * ", and one may die", size(question, router, one_dies=dies))
        for name, router in routers
        for dies in (False, True)
    ]


def _measured(options: Options, model: ModelConfig, plan: Plan, gpu: Gpu | None) -> Measured:
    """What the profile says.

    Raises:
        UsageError: it does not go with the model or with what is asked.
    """
    assert options.profile is not None
    found, path, slots = measured(options.profile), options.profile, plan.limits.max_batch
    if found.family != model.family:
        raise UsageError(f"{path} is of a {found.family} and {model.family} is planned; give a profile of this model")
    if gpu is not None and found.backend == "onnxruntime-cpu":
        raise UsageError(f"{path} was measured on a CPU and --target is a GPU; leave out one of them")
    if _pictures(options) and not found.pictures:
        raise UsageError(f"{path} measured no pictures; profile with --images 1, or plan with --pictures 0")
    if found.most_sequences < slots:
        raise UsageError(
            f"{path} measured {found.most_sequences} sequences together and a replica answers {slots}; profile with "
            f"--batch 1,{slots}, or plan with --max-batch {found.most_sequences}"
        )
    return found


def _pictures(options: Options) -> int:
    return PICTURES if options.pictures is None else options.pictures


def _traffic(options: Options, model: ModelConfig, plan: Plan) -> Traffic:
    """
    Raises:
        UsageError: pictures, prompt and answer do not fit.
    """
    count, positions = _pictures(options), plan.limits.max_seq_tokens
    each = within(model, plan.limits).most_picture_tokens
    text = TEXT_TOKENS if options.prompt_tokens is None else options.prompt_tokens - count * each
    if text < 1:
        raise UsageError(
            f"--prompt-tokens {options.prompt_tokens} are fewer than pictures and a question take (--pictures {count} "
            f"of {each} tokens); give more, or fewer pictures"
        )
    answer = options.answer_tokens or ANSWER_TOKENS
    if (longest := count * each + text + answer) > positions:
        raise UsageError(
            f"prompt and answer have {longest} tokens and the cache {positions} positions; give fewer --prompt-tokens, "
            "--pictures or --answer-tokens, or a larger --max-seq-tokens"
        )
    assert options.requests_per_second is not None
    return Traffic(
        requests_per_second=options.requests_per_second,
        text_tokens=text,
        answer_tokens=answer,
        pictures=count,
        picture_tokens=each,
        burst=1.0 if options.burst is None else options.burst,
        turns=options.turns or 1,
    )


def shown(found: Fleet) -> str:
    """The fleet as a table, with what it rests on."""
    question, name = found.asked.question, found.asked.replica
    traffic = question.traffic
    first = next(iter(found.sized.values()))
    rate = f"{traffic.requests_per_second:,.10g} request{'s' * (traffic.requests_per_second != 1)} a second"
    lines = [
        f"{rate}, 99 of 100 with their first token in {question.first_token_ms:,.10g} ms and none refused: "
        f"{first.replicas} {name}\n",
        f"of a request    {traffic.prompt_tokens} prompt tokens, {_count(traffic.pictures)} among them, and "
        f"{traffic.answer_tokens} answer tokens on average",
        f"of a step       {found.asked.basis}",
        f"of a replica    {question.kind.slots} sequences at once",
        f"of all          {len(question.requests)} requests, burst {traffic.burst:g}, conversations of {traffic.turns}",
    ]
    header = ("sent", f" {name}", " at once", " first token", " p99", " between tokens", " prompt known")
    rows = [_row(how, one) for how, one in found.sized.items()]
    return "\n\n".join(("\n".join(lines), table(rows, header), _when_one_dies(found, first)))


def _row(how: str, one: Sized) -> tuple[str, ...]:
    first, between = one.figures.time_to_first_token, one.figures.inter_token_latency
    assert first is not None
    return (
        how,
        str(one.replicas),
        f"{one.figures.running:.1f}",
        _ms(first.p50),
        _ms(first.p99),
        "" if between is None else _ms(between.p50),
        f"{one.figures.reused_share:.0%}",
    )


def _when_one_dies(found: Fleet, first: Sized) -> str:
    """What the fewest replicas do then, and how requests could be sent."""
    figures, replicas = found.without, first.replicas
    dies = f"one of {replicas}" if replicas > 1 else "it"
    said = f"When {dies} dies, the {first.figures.running:.1f} requests that it answers on average are lost"
    if figures.time_to_first_token is not None:
        said += f"; until it is back first tokens come in {_ms(figures.time_to_first_token.p99)} (p99)"
        said += f" and {figures.refused / figures.requests:.0%} are refused" if figures.refused else ""
    else:
        said += ", and none is answered until it is back"
    if found.asked.question.traffic.turns == 1:
        said += ". Requests of one turn share nothing, so that sending them by prefix changes nothing (--turns)"
    return f"{said}."


def _count(pictures: int) -> str:
    return f"{pictures or 'no'} picture{'s' * (pictures > 1)}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"


def document(found: Fleet) -> dict[str, Any]:
    """What `--json` has of it."""
    question = found.asked.question
    costs = question.kind.costs
    return {
        "replica": found.asked.replica,
        "basis": found.asked.basis,
        "traffic": asdict(question.traffic),
        "first_token_ms": question.first_token_ms,
        "least_first_token_ms": question.least_ms,
        "costs": {
            "request_ms": costs.request_ms,
            "picture_ms": costs.picture_ms,
            "chunk_ms": costs.chunk_ms.points,
            "step_ms": costs.step_ms.points,
        },
        "sized": {
            name: {"replicas": one.replicas, "figures": asdict(one.figures)} for name, one in found.sized.items()
        },
        "one_has_died": asdict(found.without),
    }
