"""Which faults a run has, and when: drawn from its seed, so that a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random


class Fault(Enum):
    """What is done to the cluster. The comment is the outcome that is promised."""

    KILL_WORKER = "kill worker"  # takeover after the lease
    FREEZE_WORKER = "freeze worker"  # takeover; what it says when it wakes up is void
    STOP_WORKER = "stop worker"  # hands over
    KILL_INGRESS = "kill ingress"  # clients resume at another
    STOP_INGRESS = "stop ingress"  # sends its clients away to another
    CUT_WORKERS = "cut workers"  # all connections of workers to Redis
    CUT_INGRESSES = "cut ingresses"
    CUT_SUBSCRIPTIONS = "cut subscriptions"  # results are read up on
    DEAFEN_WORKERS = "deafen workers"  # requests arrive, replies do not
    DEAFEN_INGRESSES = "deafen ingresses"
    FREEZE_LINK = "freeze link"  # everything between the processes and Redis stands still
    DELAY_LINK = "delay link"
    PAUSE_REDIS = "pause redis"
    RESTART_REDIS = "restart redis"  # with what it had written down
    KILL_REDIS = "kill redis"
    # With lanes:
    HANG_GROUP = "hang group"  # its lanes end, and then it
    MISLEAD_LANE = "mislead lane"  # it launches what is not its own, and ends alone
    LYING_LANE = "lying lane"  # it writes noise where its group reads, and ends alone


_OF_LANES = (Fault.HANG_GROUP, Fault.MISLEAD_LANE, Fault.LYING_LANE)
_WEIGHTS = {
    Fault.KILL_WORKER: 6,
    Fault.FREEZE_WORKER: 4,
    Fault.STOP_WORKER: 3,
    Fault.KILL_INGRESS: 5,
    Fault.STOP_INGRESS: 3,
    Fault.CUT_WORKERS: 3,
    Fault.CUT_INGRESSES: 3,
    Fault.CUT_SUBSCRIPTIONS: 3,
    Fault.DEAFEN_WORKERS: 3,
    Fault.DEAFEN_INGRESSES: 3,
    Fault.FREEZE_LINK: 2,
    Fault.DELAY_LINK: 2,
    Fault.PAUSE_REDIS: 2,
    Fault.RESTART_REDIS: 1,
    Fault.KILL_REDIS: 1,
}


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """at_s: after the run's start. choice: picks the process. seconds: how long it lasts."""

    at_s: float
    fault: Fault
    choice: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s: {self.fault.value} #{self.choice} for {self.seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class PlannedStream:
    """clip: number of the clip. speed: times real time. url: which address is tried first."""

    clip: int
    delay_s: float
    speed: float
    url: int
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    streams: tuple[PlannedStream, ...]
    faults: tuple[PlannedFault, ...]


def make_plan(seed: int, num_clips: int, num_urls: int, *, lanes: bool = False) -> Plan:
    """8 to 20 streams and 3 to 7 faults, within about six seconds.

    lanes: three of four plans have one fault more, of those that only lanes have.
    """
    random = Random(seed)
    streams = tuple(
        PlannedStream(
            random.randrange(num_clips),
            random.uniform(0, 2.0),
            random.uniform(2.0, 8.0),
            random.randrange(num_urls),
            random.randrange(1 << 30),
        )
        for _ in range(random.randint(8, 20))
    )
    kinds = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=random.randint(3, 7))
    faults = [_planned(kind, random) for kind in kinds]
    if lanes and (further := random.choice((None, *_OF_LANES))) is not None:
        faults.append(_planned(further, random))
    return Plan(seed, streams, tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _planned(kind: Fault, random: Random) -> PlannedFault:
    return PlannedFault(random.uniform(0.3, 5.5), kind, random.randrange(64), random.uniform(0.1, 3.0))
