"""What `serve` checks before anything starts, and what it tells its children."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from common.settings import parse
from parakeet.serve.readiness import PortTaken, check_port_free


def test_a_port_in_use_is_named_with_its_flag(free_port: int) -> None:
    check_port_free("127.0.0.1", free_port, "--port")
    check_port_free("127.0.0.1", 0, "--port")
    with socket.socket() as other:
        # As another server's ingress processes listen.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(PortTaken, match=f"--ws-port got {free_port}, .*:{free_port} is not free"):
            check_port_free("127.0.0.1", free_port, "--ws-port")


def test_children_differ_from_the_settings_of_serve_in_their_names_alone() -> None:
    settings = parse("serve", ["--model-size", "tiny", "--port", "7000"], {})
    assert replace(settings.worker, worker_id="") == replace(
        parse("worker", ["--model-size", "tiny"], {}), worker_id="", redis_url=()
    )
    assert replace(settings.ingress, ingress_id="") == replace(
        parse("ingress", ["--port", "7000"], {}), ingress_id="", redis_url=()
    )
