"""Where requests go."""

from collections import Counter

from vlm_trt.fleet.dispatch import by_prefix, in_turn, least_busy, less_busy
from vlm_trt.fleet.workload import Arrival

NONE = Arrival(0.0, 10, 1)


def of(conversation: int) -> Arrival:
    return Arrival(0.0, 10, 1, conversation=conversation)


def test_of_two_replicas_the_less_busy_one() -> None:
    """The busiest of three never has it; of two that are alike, each has its share."""
    route = less_busy(0)
    chosen = Counter(route(NONE, {0: 5, 4: 2, 7: 2}) for _ in range(600))
    assert chosen.keys() == {4, 7} and min(chosen.values()) > 200
    assert route(NONE, {3: 9}) == 3


def test_the_least_busy_of_all() -> None:
    assert least_busy(0)(NONE, {0: 5, 4: 3, 7: 2, 9: 2}) == 7


def test_a_conversation_stays_where_it_is() -> None:
    route, loads = by_prefix(0, 4), dict.fromkeys(range(5), 0)
    homes = {one: route(of(one), loads) for one in range(500)}
    assert homes == {one: by_prefix(9, 4)(of(one), loads) for one in range(500)}
    assert min(Counter(homes.values()).values()) > 60
    # Of those that lose their replica each goes to another; the others stay.
    left = {one: load for one, load in loads.items() if one != 2}
    moved = {one: route(of(one), left) for one in range(500)}
    assert all(moved[one] == home for one, home in homes.items() if home != 2)
    assert len({moved[one] for one, home in homes.items() if home == 2}) == 4


def test_a_conversation_leaves_a_replica_that_is_far_behind() -> None:
    route = by_prefix(0, most_behind=2)
    home = route(of(1), {0: 0, 1: 0})
    for more, stays in ((2, True), (3, False)):
        assert (route(of(1), {home: 4 + more, 1 - home: 4}) == home) is stays


def test_what_belongs_to_no_conversation_goes_to_the_less_busy() -> None:
    assert by_prefix(0, 4)(NONE, {0: 1, 1: 0}) == 1


def test_one_after_the_other_leaves_out_who_is_not_there() -> None:
    route = in_turn()
    assert [route(NONE, dict.fromkeys(there, 0)) for there in ((0, 1, 2), (0, 2), (0, 1, 2), (0, 1), (1, 2))] == [
        0, 2, 0, 1, 2,
    ]  # fmt: skip
