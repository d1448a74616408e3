"""A group of lanes with pages on CPU: ``python -m tests.altered.paged_group FLAGS``.

--paged-kv-page-size and --paged-kv-max-pages hold without CUDA too, for the plain model's pages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gpu_worker.steps.factory as factory
from common.settings import WorkerSettings
from gpu_worker.engine.config import EngineConfig
from gpu_worker.lanes.group import Group
from gpu_worker.lanes.monitor import GroupMonitor
from gpu_worker.process import leave, run

_CONFIG_OF = factory.engine_config


def engine_config(settings: WorkerSettings, *others: Any, **more: Any) -> EngineConfig:
    """As the factory's, with the pages of the flags."""
    config = _CONFIG_OF(settings, *others, **more)
    return replace(config, page_frames=settings.paged_kv_page_size, num_pages=settings.paged_kv_max_pages)


def make(settings: WorkerSettings) -> Group:
    """The group that the settings ask for."""
    factory.engine_config = engine_config
    return Group(settings)


if __name__ == "__main__":
    leave(run(make, GroupMonitor))
