"""The usage of each API key over all ingresses: streams at once, new ones in this minute, audio of this day.

Each ingress writes the number of its streams of a key to a field of a hash. Fields of ingresses that are gone
do not count. Days are those of UTC by the server's clock.
"""

from __future__ import annotations

from enum import Enum
from uuid import uuid4

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.entries import IngressId
from common.errors import RedisUnavailable
from common.redis.clients import REDIS_ERROR, PipelinedCommands
from common.redis.keys import Keys
from common.redis.scripts import Command
from common.redis.scripts import usage as scripts


class Bound(Enum):
    """The limit of a key that is reached."""

    STREAMS = 1
    NEW = 2
    AUDIO = 3


class KeyUsage:
    """Counts in Redis for one ingress. client: client of shard 0. Calls raise RedisUnavailable."""

    def __init__(self, client: PipelinedCommands, keys: Keys, ingress: IngressId) -> None:
        self._client = client
        self._keys = keys
        self._ingress = ingress

    async def enter(self, record: KeyRecord, num_before: int, num_new: int) -> Bound | None:
        """Count new streams of a key on this ingress; return the bound that they would pass, or None."""
        command = scripts.enter(
            self._keys,
            key=record.key_id,
            ingress=self._ingress,
            num_before=num_before,
            num_new=num_new,
            max_streams=record.max_streams,
            new_per_minute=record.new_per_minute,
            audio_s_per_day=record.audio_s_per_day,
            once=uuid4().hex,
        )
        reply = await self._execute(command)
        return Bound(int(reply)) if reply else None

    async def report(self, key: KeyId, num_streams: int, audio_s: float, once: str) -> float:
        """Report this ingress's number of streams of a key, and the audio since the last report.

        Returns the key's seconds of audio on this day.

        once: name of these seconds. If the call raises, it is unknown whether they are counted: the caller
        has to report the same seconds again under the same name.
        """
        return await self._execute(
            scripts.report(
                self._keys,
                key=key,
                ingress=self._ingress,
                num_streams=num_streams,
                audio_s=audio_s,
                once=once,
            )
        )

    async def _execute(self, command: Command) -> float:
        try:
            return float(await self._client.execute_command(*command))
        except (REDIS_ERROR, OSError) as error:
            raise RedisUnavailable from error
