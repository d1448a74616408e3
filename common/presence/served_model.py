"""The model that all workers of a cluster serve, with its context and chunk.

Only if all workers serve the same model, a stream's results do not depend on the worker, and every worker can
use its snapshots. The first worker decides. The choice holds while a worker lives: every heartbeat of every
worker renews the key, which lapses a little later than the last lease, and is deleted by the last worker that
leaves in good order.
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

_NOT_COMPARED: Final = ("model", "languages", "prompted", "letters")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The properties of a worker that must be the same in all workers of a cluster.

    model: its name for people; not compared.
    weights: digest of its weights (gpu_worker/model/loading/fingerprint.py).
    chunk_ms: audio of a result.
    context: attention context of the encoder, left and right, in encoder frames.
    eou_reset: whether the decoder is reset at an end of utterance.
    phrases: digest of the phrases of all streams (common/phrases.py).
    languages: names of the model's languages, separated by commas, for ingresses; not compared.
    prompted: `on` if a stream chooses one of the languages; not compared.
    letters: the characters that the model can write, as `Languages` has them; not compared.
    """

    model: str
    weights: str
    chunk_ms: int
    context: str
    eou_reset: str
    phrases: str = "none"
    languages: str = ""
    prompted: str = "off"
    letters: str = ""

    def agree(self, client: SyncClient, keys: Keys, lease_ms: int) -> None:
        """Agree on it with the cluster, and renew the key.

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
        fields = await client.execute_command("HMGET", keys.served_model, "languages", "prompted", "letters")
    except (REDIS_ERROR, OSError) as error:
        raise RedisUnavailable from error
    names, prompted, letters = (field.decode() if field else "" for field in fields)
    return Languages(tuple(filter(None, names.split(","))), prompted == "on", letters)


def leave(client: SyncClient, keys: Keys, worker: WorkerId) -> None:
    """Delete the key if no other worker lives: the next worker may serve another model.

    Raises the client's errors.
    """
    client.execute_command(*presence.leave_model(keys, worker=worker))
