"""A cluster whose workers are groups of lanes: a fault may meet a group, which has the model, or a lane."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from common.settings import lane_ids
from parakeet.serve.child import start_tied
from tests.chaos.fleets.fleet import RESTART_AFTER_S, Fleet, Member
from tests.service_process import ROOT

_LOOK_S = 0.05


class LaneFleet(Fleet):
    """Groups of two lanes. `workers` are the groups, each before its lanes."""

    def __init__(
        self, folder: Path, *, num_groups: int = 2, num_lanes: int = 2, num_ingresses: int = 2
    ) -> None:
        super().__init__(
            folder, num_workers=0, num_ingresses=num_ingresses, lanes=num_lanes, measure_capacity_s=0
        )
        self._groups = [
            (Member(f"g{group}"), [Member(f"g{group}-l{lane}") for lane in range(num_lanes)])
            for group in range(num_groups)
        ]
        self.groups = [group for group, _ in self._groups]
        self.lanes = [lane for _, lanes in self._groups for lane in lanes]
        self.workers = [member for group, lanes in self._groups for member in (group, *lanes)]

    async def _start_workers(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._keep_group(group, lanes)) for group, lanes in self._groups]

    @property
    def _serving(self) -> set[str]:
        return {lane.name for lane in self.lanes}

    def may_meet(self, member: Member) -> bool:
        """As for workers; but a group ends, or stands still, only while another one has its lanes.

        With both on their way back nobody serves, on a busy machine for longer than streams wait, and then
        they end with an error, as they should.
        """
        others = [(group, lanes) for group, lanes in self._groups if group is not member]
        spares = len(others) == len(self._groups) or any(
            not group.frozen and all(lane.pid for lane in lanes) for group, lanes in others
        )
        return spares and super().may_meet(member)

    async def _keep_group(self, group: Member, lanes: list[Member]) -> None:
        while True:
            group.name = self._next_name("g")
            for lane, name in zip(lanes, lane_ids(group.name, len(lanes)), strict=True):
                lane.name = name
            command = [
                *(sys.executable, "-m", "tests.chaos.faulty.misled_group", f"--worker-id={group.name}"),
                "--redis-timeout-ms=1500",
                *(f"--{name.replace('_', '-')}={value}" for name, value in self._worker_flags.items()),
            ]
            environment = {
                **os.environ,
                "PARAKEET_REDIS_URL": self.worker_proxy.url,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
            }
            with (self.folder / f"{group.name}.log").open("ab") as log:
                process = start_tied(command, environment, output=log.fileno())
            self.num_starts += 1
            group.frozen, group.pid = False, process.pid
            try:
                while process.poll() is None:
                    self._find(group, lanes)
                    await asyncio.sleep(_LOOK_S)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            for member in (group, *lanes):
                member.pid = 0
            group.exits.append(process.returncode)
            await asyncio.sleep(RESTART_AFTER_S)

    @staticmethod
    def _find(group: Member, lanes: list[Member]) -> None:
        """Note which processes the lanes are now: the group starts them again by itself."""
        pids: dict[str, int] = {}
        try:
            children = Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()
            for child in children:
                for argument in Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0"):
                    if argument.startswith("--worker-id="):
                        pids[argument.removeprefix("--worker-id=")] = int(child)
        except FileNotFoundError:  # the group, or a lane, is just ending
            return
        for lane in lanes:
            pid = pids.get(lane.name, 0)
            if pid != lane.pid:
                lane.pid, lane.frozen = pid, False
