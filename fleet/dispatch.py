"""To which replica a request goes."""

from collections.abc import Callable, Mapping
from random import Random

from vlm_trt.fleet.workload import Arrival

# A replica's requests by its number, of those that are there and have room; the number of one of them comes back.
Route = Callable[[Arrival, Mapping[int, int]], int]
# How many more requests than the least busy replica one may have, and still be sent what it knows: as a share of the
# slots of a replica. With more, requests wait for a slot that others have free.
BEHIND = 0.125


def less_busy(seed: int) -> Route:
    """Of two replicas drawn by chance the one with fewer requests, as Ray Serve does it: nobody has to know of all."""
    random = Random(seed)

    def route(asked: Arrival, loads: Mapping[int, int]) -> int:
        two = random.sample(list(loads), min(2, len(loads)))
        return min(two, key=loads.__getitem__)

    return route


def least_busy(seed: int) -> Route:
    """The one with the fewest requests of all, the first of several: who sends has to know of every request."""

    def route(asked: Arrival, loads: Mapping[int, int]) -> int:
        return min(loads, key=lambda replica: (loads[replica], replica))

    return route


def by_prefix(seed: int, most_behind: int) -> Route:
    """Requests of a conversation go to one replica, unless it has that many more than another; the rest as above.

    A conversation's replica is the one with the highest rank of its own (rendezvous hashing), so that where one dies
    only its own conversations move, and those come back with it.
    """
    other = least_busy(seed)

    def route(asked: Arrival, loads: Mapping[int, int]) -> int:
        conversation = asked.conversation
        if conversation is None:
            return other(asked, loads)
        home = max(loads, key=lambda replica: _mixed(conversation, replica))
        return home if loads[home] <= min(loads.values()) + most_behind else other(asked, loads)

    return route


def in_turn() -> Route:
    """One after the other."""
    last = -1

    def route(asked: Arrival, loads: Mapping[int, int]) -> int:
        nonlocal last
        last = min((one for one in loads if one > last), default=min(loads))
        return last

    return route


def _mixed(conversation: int, replica: int) -> int:
    """A number that looks drawn, and is the same for the same two."""
    mixed = (conversation * 0x9E3779B97F4A7C15 + replica * 0xC2B2AE3D27D4EB4F) & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    return mixed ^ (mixed >> 32)
