"""A fleet, event by event: requests go to replicas as they arrive; a replica takes step after step, and may die."""

import math
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush

from vlm_trt.fleet.dispatch import Route
from vlm_trt.fleet.outcome import Ended, How, Outcome
from vlm_trt.fleet.replica import Kind, Replica, Sequence
from vlm_trt.fleet.workload import Arrival

# Decode steps that are taken at once where nothing else is to be done, so that fewer events are looked at.
_AT_ONCE = 1 << 30


@dataclass(frozen=True)
class Death:
    """A replica that ends at once, with all that it has."""

    replica: int
    at_s: float
    back_s: float = math.inf  # when it is there again, and knows nothing of before
    retried: bool = False  # whether what it had is asked of others, from the beginning; else it is lost


def simulate(
    arrivals: Sequences[Arrival], kind: Kind, replicas: int, route: Route, deaths: Sequences[Death] = ()
) -> Outcome:
    """What becomes of every request.

    One goes to a replica that is there and has room for it; where none has, it is refused.

    Args:
        arrivals: in their order.
        kind: what every replica is.
        replicas: how many there are.
        route: chooses among them.
        deaths: of replicas.
    """
    return _Fleet(arrivals, kind, replicas, route).run(deaths)


@dataclass(slots=True)
class _Told:
    """What is known of a request."""

    how: How = How.LOST
    replica: int | None = None
    first_s: float = math.nan
    end_s: float = math.nan
    reused_tokens: int = 0


class _Host:
    """A replica and its time."""

    def __init__(self, kind: Kind) -> None:
        self.replica = Replica(kind)
        self.until: float | None = None  # when its step is over; None: it has nothing to do
        self.ending: list[Sequence] = []  # that are answered by then
        self.event = 0  # the number of what it waits for: an earlier one is of no interest any more
        self.busy: list[tuple[float, float]] = []  # from when to when
        self._costs = kind.costs
        self._steps_s = [0.0, *(kind.costs.step_ms.at(at) / 1000 for at in range(1, kind.slots + 1))]
        self._decode = (0.0, 0.0, 1)  # when the decode steps began, seconds of one, and how many

    def step(self, now: float, told: Sequences[_Told]) -> None:
        """Begins a step, and notes of every request what it will bring."""
        work, costs = self.replica.work(_AT_ONCE), self._costs
        at = now + (work.taken * costs.request_ms + work.pictures * costs.picture_ms) / 1000
        if (one := work.prefilled) is not None:
            at += costs.chunk_ms.at(work.chunk_tokens) / 1000
            known = told[one.number]
            known.reused_tokens = one.reused_tokens
            if not (one.unfilled or known.first_s <= at):  # told before a death, it is not told again
                known.first_s = at
        step_s = self._steps_s[work.decoding]
        self._decode = at, step_s, work.repeated
        self.until, self.ending = at + work.repeated * step_s, work.ended
        for one in work.ended:
            told[one.number].end_s = at if one.asked.answer_tokens == 1 else self.until
        if self.busy and self.busy[-1][1] == now:
            now, _ = self.busy.pop()
        self.busy.append((now, self.until))

    def interrupt(self, now: float) -> bool:
        """Whether decode steps that were to be repeated end with the one that runs."""
        began, step_s, repeated = self._decode
        if repeated == 1 or not step_s or (done := max(1, math.ceil((now - began) / step_s))) >= repeated:
            return False
        self.replica.undo(repeated - done)
        self._decode, self.until = (began, step_s, done), began + done * step_s
        self.busy[-1] = self.busy[-1][0], self.until
        return True

    def die(self, now: float, told: Sequences[_Told]) -> list[Sequence]:
        """What it had. What its step would have brought has not happened."""
        had = [*self.ending, *self.replica.has] if self.until is not None else self.replica.has
        had = [one for one in had if not told[one.number].end_s <= now]
        for one in had:
            known = told[one.number]
            known.end_s, known.first_s = math.nan, known.first_s if known.first_s <= now else math.nan
        if self.until is not None:
            self.busy[-1] = self.busy[-1][0], now
        return had


class _What(IntEnum):
    """What happens, in the order of what happens at the same time."""

    DEATH = 0
    RETURN = 1
    REQUEST = 2
    STEP = 3  # is over


class _Fleet:
    """Its replicas, what they have, and what happens next."""

    def __init__(self, arrivals: Sequences[Arrival], kind: Kind, replicas: int, route: Route) -> None:
        self._arrivals, self._kind, self._route = arrivals, kind, route
        self._told = [_Told() for _ in arrivals]
        self._hosts = [_Host(kind) for _ in range(replicas)]
        self._busy: list[list[tuple[float, float]]] = [host.busy for host in self._hosts]
        self._loads = [0] * replicas
        self._open = dict.fromkeys(range(replicas), 0)  # load of those that are there and have room
        self._dead: set[int] = set()
        self._events = 0
        # When, what, of which death, replica or request; of a step, its number.
        self._heap: list[tuple[float, _What, int, int]] = [
            (one.at_s, _What.REQUEST, at, 0) for at, one in enumerate(arrivals)
        ]

    def run(self, deaths: Sequences[Death]) -> Outcome:
        self._heap += [(one.at_s, _What.DEATH, at, 0) for at, one in enumerate(deaths)]
        self._heap += [(one.back_s, _What.RETURN, one.replica, 0) for one in deaths if one.back_s < math.inf]
        heapify(self._heap)
        while self._heap:
            now, what, which, event = heappop(self._heap)
            match what:
                case _What.STEP if self._hosts[which].event == event:
                    self._stepped(now, which)
                case _What.REQUEST:
                    self._send(now, which)
                case _What.RETURN:
                    self._return(which)
                case _What.DEATH:
                    self._die(now, deaths[which])
        ended = zip(self._arrivals, self._told, strict=True)
        return Outcome(
            tuple(
                Ended(asked, one.how, one.replica, one.first_s, one.end_s, one.reused_tokens) for asked, one in ended
            ),
            tuple(map(tuple, self._busy)),
        )

    def _send(self, now: float, number: int) -> None:
        told, asked = self._told[number], self._arrivals[number]
        if not self._open:
            told.how, told.end_s = How.REFUSED, now
            return
        which = self._route(asked, self._open)
        told.replica, told.how = which, How.ANSWERED
        host = self._hosts[which]
        if host.until is None:
            host.replica.submit(number, asked)
            self._step(now, which)
        else:
            if host.interrupt(now):
                self._await(which)
            host.replica.submit(number, asked)
        self._count(which, 1)

    def _step(self, now: float, which: int) -> None:
        self._hosts[which].step(now, self._told)
        self._await(which)

    def _await(self, which: int) -> None:
        """Looks at a replica again when its step is over."""
        host = self._hosts[which]
        assert host.until is not None
        self._events += 1
        host.event = self._events
        heappush(self._heap, (host.until, _What.STEP, which, host.event))

    def _stepped(self, now: float, which: int) -> None:
        host = self._hosts[which]
        self._count(which, -len(host.ending))
        host.ending = []
        if host.replica.load:
            self._step(now, which)
        else:
            host.until = None

    def _count(self, which: int, more: int) -> None:
        self._loads[which] += more
        if which in self._dead or self._loads[which] >= self._kind.room:
            self._open.pop(which, None)
        else:
            self._open[which] = self._loads[which]

    def _die(self, now: float, death: Death) -> None:
        which = death.replica
        if which in self._dead:
            return
        had = self._hosts[which].die(now, self._told)
        self._hosts[which] = _Host(self._kind)
        self._hosts[which].busy = self._busy[which]
        self._dead.add(which)
        self._loads[which] = 0
        self._count(which, 0)
        for one in had:
            if death.retried:
                self._send(now, one.number)
            else:
                self._told[one.number].how, self._told[one.number].end_s = How.LOST, now

    def _return(self, which: int) -> None:
        self._dead.discard(which)
        self._count(which, 0)
