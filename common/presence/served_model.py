"""What all workers of a cluster run: one model, one context, one chunk.

Results of a stream are the same whichever worker decodes it, and a snapshot means the same to each of them,
only as long as they run the same. The first worker says what that is. It holds while a worker lives: the key
is renewed by every heartbeat of every worker, lapses a little later than the last lease, and goes with the
last worker that leaves in good order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from common.entries import WorkerId
from common.errors import SettingsMismatch
from common.redis.keys import SERVED_MODEL_LEAST_TTL_MS, Keys
from common.redis.pipelined import SyncClient
from common.redis.scripts import presence


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a worker runs, as far as all workers of a cluster must run the same.

    model: its name for people; not compared.
    weights: a name for its weights (gpu_worker/model.fingerprint.py).
    chunk_ms: audio of a result.
    context: attention context of the encoder, left and right, in encoder frames.
    eou_reset: whether the decoder is reset at an end of utterance.
    phrases: a name for the phrases of all streams (common/phrases.py).
    """

    model: str
    weights: str
    chunk_ms: int
    context: str
    eou_reset: str
    phrases: str = "none"

    def agree(self, client: SyncClient, keys: Keys, lease_ms: int) -> None:
        """State it for the cluster, or for some more time.

        Raises SettingsMismatch, and the client's errors.
        """
        flat = [item for pair in asdict(self).items() for item in pair]
        ttl_ms = max(SERVED_MODEL_LEAST_TTL_MS, 2 * lease_ms)
        differs = client.execute_command(*presence.agree_on_model(keys, ttl_ms=ttl_ms, model=flat))
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


def leave(client: SyncClient, keys: Keys, worker: WorkerId) -> None:
    """Take what is served away where no other worker lives: the next one may serve something else.

    Raises the client's errors.
    """
    client.execute_command(*presence.leave_model(keys, worker=worker))
