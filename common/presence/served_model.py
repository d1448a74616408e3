"""What all workers of a cluster run: one model, one context, one chunk.

Results of a stream are the same whichever worker decodes it, and a snapshot means the same to each of them,
only as long as they run the same. The first worker says what that is. It holds while a worker lives: the key
is renewed by every heartbeat of every worker, lapses a little later than the last lease, and goes with the
last worker that leaves in good order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from common.entries import WorkerId
from common.errors import RedisUnavailable, SettingsMismatch
from common.languages import Languages
from common.redis.clients import REDIS_ERROR, PipelinedCommands
from common.redis.keys import SERVED_MODEL_LEAST_TTL_MS, Keys
from common.redis.pipelined import SyncClient
from common.redis.scripts import presence

_NOT_COMPARED: Final = ("model", "languages", "prompted")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker runs, as far as all workers of a cluster must run the same.

    model: its name for people; not compared.
    weights: a name for its weights (gpu_worker/model.fingerprint.py).
    chunk_ms: audio of a result.
    context: attention context of the encoder, left and right, in encoder frames.
    eou_reset: whether the decoder is reset at an end of utterance.
    phrases: a name for the phrases of all streams (common/phrases.py).
    languages: names of the model's languages between commas, for ingresses; not compared.
    prompted: `on` where a stream chooses one of them; not compared.
    """

    model: str
    weights: str
    chunk_ms: int
    context: str
    eou_reset: str
    phrases: str = "none"
    languages: str = ""
    prompted: str = "off"

    def agree(self, client: SyncClient, keys: Keys, lease_ms: int) -> None:
        """State it for the cluster, or for some more time.

        Raises SettingsMismatch, and the client's errors.
        """
        fields = asdict(self)
        told = {name: fields.pop(name) for name in _NOT_COMPARED}
        ttl_ms = max(SERVED_MODEL_LEAST_TTL_MS, 2 * lease_ms)
        command = presence.agree_on_model(keys, ttl_ms=ttl_ms, told=told, compared=fields)
        differs = client.execute_command(*command)
        if differs:
            name, value, model = (item.decode() for item in differs)
            raise SettingsMismatch(self._mismatch(name, value, model))

    def _mismatch(self, name: str, theirs: str, their_model: str) -> str:
        ours = asdict(self)[name]
        said = {
            "weights": f"This worker's model is {self.model} (weights {ours})",
            "chunk_ms": f"--chunk-ms is {ours} here",
            "context": f"This worker's attention context is {ours} frames",
            "eou_reset": f"--eou-reset is {ours} here",
            "phrases": f"The hash of the phrases of --phrases-file is {ours} here",
        }[name]
        have = f"{their_model} (weights {theirs})" if name == "weights" else theirs
        return (
            f"{said}, and the running cluster has {have}: all workers of a cluster run the same."
            " Start a second cluster for another model."
        )


async def served_languages(client: PipelinedCommands, keys: Keys) -> Languages:
    """Return the languages of the served model; none where no worker lives, or all are of an older release.

    Raises RedisUnavailable.
    """
    try:
        fields = await client.execute_command("HMGET", keys.served_model, "languages", "prompted")
    except (REDIS_ERROR, OSError) as error:
        raise RedisUnavailable from error
    names, prompted = (field.decode() if field else "" for field in fields)
    return Languages(tuple(filter(None, names.split(","))), prompted == "on")


def leave(client: SyncClient, keys: Keys, worker: WorkerId) -> None:
    """Take what is served away where no other worker lives: the next one may serve something else.

    Raises the client's errors.
    """
    client.execute_command(*presence.leave_model(keys, worker=worker))
