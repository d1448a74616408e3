"""The Python client and `transcribe` at a server that asks for a key."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from parakeet.client import ServerError, connect, transcribe
from tests.ports import HOST
from tests.service_process import ROOT
from tests.stack import TIMEOUTS, Stack

pytestmark = pytest.mark.one_server

RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"


async def test_a_key_opens_streams_on_both_ports_and_in_the_command(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, key = create_key(path, KeyRecord(key_id=KeyId(""), digest="", name="desk"))
    stack.worker()
    ingress = stack.ingress(auth_keys_file=str(path))
    addresses = (f"tcp://{HOST}:{ingress.port}", f"ws://{HOST}:{ingress.ws_port}")
    for url in addresses:
        assert (await transcribe(url, RECORDING, api_key=key)).is_final
        wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
        with pytest.raises(ServerError) as caught:
            await connect(url, api_key=wrong, timeouts=TIMEOUTS)
        assert caught.value.code == "unauthorized"
    with pytest.raises(ServerError, match="unauthorized"):
        await connect(addresses[1], timeouts=TIMEOUTS)

    async def command(environment: dict[str, str]) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "parakeet.cli", "transcribe", "--url", addresses[1], str(RECORDING)),
            cwd=ROOT,
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        return process.returncode, errors.decode()

    assert await command({"PARAKEET_API_KEY": key}) == (0, "")
    status, errors = await command({})
    assert status == 1
    assert errors.startswith("parakeet-server transcribe: unauthorized: ")
    assert errors.count("\n") == 1
    await stack.empty()
