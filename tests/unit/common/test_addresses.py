"""Hosts and ports as one writes them."""

from __future__ import annotations

import pytest

from common.addresses import bare_host, host_and_port


@pytest.mark.parametrize(
    ("host", "bare", "written"),
    [
        ("localhost", "localhost", "localhost:80"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:80"),
        ("::1", "::1", "[::1]:80"),
        ("[fe80::1%eth0]", "fe80::1%eth0", "[fe80::1%eth0]:80"),
    ],
)
def test_an_ipv6_address_stands_in_brackets_where_a_port_follows(host: str, bare: str, written: str) -> None:
    assert bare_host(host) == bare
    assert host_and_port(host, 80) == written
