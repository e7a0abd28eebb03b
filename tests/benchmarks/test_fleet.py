"""The load that the fleet's check sends, against a real server; and that the page says what the results do."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fleet_check import body, each_ms, figures, random_of
from benchmarks.fleet_load import closed, replay
from tests.conftest import ROOT
from tests.serving.live import serving
from vlm_trt.fleet.costs import Costs, Curve
from vlm_trt.fleet.workload import Arrival
from vlm_trt.serving.settings import Settings


def test_requests_are_sent_at_their_time_and_timed(exported: Callable[..., Path]) -> None:
    """Two servers take turns; every answer has as many tokens as asked for, the first before the last."""
    answers, at_s = [3, 5, 4, 6], [0.0, 0.05, 0.1, 0.15]
    bodies = [body(random_of(number), tokens, 20) for number, tokens in enumerate(answers)]
    seen: list[Sequence[int]] = []

    def in_turn(number: int, loads: Sequence[int]) -> int:
        seen.append(tuple(loads))
        return number % 2

    bundle = exported("ntk-256")
    with serving({"tiny": bundle}, Settings()) as one, serving({"tiny": bundle}, Settings()) as other:
        sent = replay([one.url, other.url], bodies, at_s, in_turn)
        alone = closed(one.url, bodies[:2], clients=2)
    assert [each.server for each in sent] == [0, 1, 0, 1] and seen[0] == (0, 0)
    assert [each.answer_tokens for each in sent] == answers
    for each, at in zip(sent, at_s, strict=True):
        assert each.at_s == at and each.late_s >= 0 and at < each.first_s < each.end_s
        assert each.prompt_tokens > 256
    assert all(0 < first < end for first, end, _ in alone)


def test_figures_by_hand() -> None:
    """First tokens after 100 and 300 ms; 2 and 5 tokens in the 2 s from the first request to the last token."""
    ended = [(Arrival(1.0, 10, 2), 1.1, 1.2), (Arrival(2.0, 10, 5), 2.3, 3.0)]
    found = figures(ended)
    assert (found["first_token_p50_ms"], found["request_p50_ms"]) == (200, 600)
    assert (found["between_tokens_p50_ms"], found["tokens_per_second"]) == (137.5, 3.5)
    costs = Costs(picture_ms=50, chunk_ms=Curve(((0.0, 26.0),)), step_ms=Curve(((1.0, 4.0), (4.0, 8.0))))
    assert each_ms(costs) == 50 + 26 + 24 * 8 / 4


def test_the_page_has_the_results() -> None:
    """GPUs of the table, in the order of its rows and columns; ratios of the comparison."""
    results = json.loads((ROOT / "benchmarks" / "results" / "fleet.json").read_text(encoding="utf-8"))
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows: dict[tuple[float, float], list[str]] = {}
    for one in results["replicas"]:
        cells = rows.setdefault((one["requests_per_second"], one["burst"]), [])
        cells.append(f"{one['replicas']}, {one['one_may_die']}")
    for (rate, burst), cells in rows.items():
        assert f"| {rate:g} | {burst:g} | {' | '.join(cells)} |\n" in page
    for run in results["engine"]["runs"]:
        ratios = " | ".join(f"{ratio:.2f}" for ratio in run["simulated / real"].values())
        assert f"| {run['busy']:.0%} | {ratios} |\n" in page
    for run in results["check"]["runs"]:
        ratios = " | ".join(f"{ratio:.2f}" for ratio in run["simulated / real"].values())
        assert f"| {sum(run['busy']) / 2:.0%}, {run['sent']} | {ratios} |\n" in page
