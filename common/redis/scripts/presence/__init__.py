"""Scripts for leases and heartbeats, and for the model that the workers serve: on shard 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.entries import IngressId, WorkerId
from common.redis.keys import REGISTER_TTL_MS, WORKER_HASH_TTL_MS, Keys
from common.redis.scripts import Command, run


def renew_lease(keys: Keys, *, worker: WorkerId, ttl_ms: int, begins: bool) -> Command:
    """Take or renew a worker's lease. Replies 1 if it held, 0 if it had lapsed, -1 if it is new.

    begins: whether the worker's process starts.
    """
    return run("presence/renew_lease", (keys.workers,), worker, ttl_ms, REGISTER_TTL_MS, int(begins))


def lease_end(keys: Keys, *, worker: WorkerId) -> Command:
    """Reply when a worker's lease ends, in Redis' milliseconds; 0 where it is not held."""
    return run("presence/lease_end", (keys.workers,), worker)


def release_lease(keys: Keys, *, worker: WorkerId) -> Command:
    """Let a worker's lease lapse now, and delete its hash."""
    return run("presence/release_lease", (keys.workers, keys.worker(worker)), worker)


def report(
    keys: Keys, *, worker: WorkerId, process: str, takes: bool, fields: Iterable[str | int | float]
) -> Command:
    """Write a worker's hash, names and values flat. Replies 0 where another process wrote it last.

    takes: whether to write it even then.
    """
    flags = (process, int(takes), WORKER_HASH_TTL_MS)
    return run("presence/report", (keys.worker(worker),), *flags, *fields)


def lapsed_workers(keys: Keys, *, worker: WorkerId) -> Command:
    """Reply the workers whose lease has lapsed; none where that of this worker has."""
    return run("presence/lapsed", (keys.workers,), worker)


def register_owners(keys: Keys, *, ttl_ms: int, owners: Iterable[WorkerId]) -> Command:
    """Give owners of streams that are not registered a lease. Replies how many these were."""
    return run("presence/register_owners", (keys.workers,), ttl_ms, REGISTER_TTL_MS, *owners)


def missing_ingresses(keys: Keys, *, ingresses: Iterable[IngressId]) -> Command:
    """Return the ingresses, of those given, that are unknown or count as gone."""
    return run("presence/missing", (keys.ingresses,), *ingresses)


def remove_worker(keys: Keys, *, worker: WorkerId) -> Command:
    """Remove a worker whose lease has lapsed. Replies 0 if it holds again."""
    return run("presence/remove_worker", (keys.workers, keys.worker(worker)), worker)


def beat(
    keys: Keys, *, ingress: IngressId, alive_ms: int, hash_ttl_ms: int, fields: Iterable[str | int]
) -> Command:
    """Sign an ingress on for so long, with the fields of its hash, names and values flat; {rank, count}."""
    return run(
        "presence/beat",
        (keys.ingresses, keys.ingress(ingress)),
        *(ingress, alive_ms, REGISTER_TTL_MS, hash_ttl_ms, *fields),
    )


def others_serve(keys: Keys, *, ingress: IngressId) -> Command:
    """Reply whether another ingress is alive and does not drain."""
    return run("presence/others_serve", (keys.ingresses,), ingress, keys.ingress_hash_stem)


def agree_on_model(
    keys: Keys, *, ttl_ms: int, told: Mapping[str, str | int], compared: Mapping[str, str | int]
) -> Command:
    """State what is served; {}, or {name, the cluster's value, its model} where a compared field differs.

    told: fields of which the cluster keeps the first value.
    """
    fields = (*told.items(), *compared.items())
    flat = (item for pair in fields for item in pair)
    return run("presence/agree_on_model", (keys.served_model,), ttl_ms, len(told), *flat)


def leave_model(keys: Keys, *, worker: WorkerId) -> Command:
    """Take what is served away where no other worker lives."""
    return run("presence/leave_model", (keys.served_model, keys.workers), worker)
