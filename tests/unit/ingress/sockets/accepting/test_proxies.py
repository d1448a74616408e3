"""Whose word about a client's address counts."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ingress.auth.proxies import TrustedProxies, plain_address

_PROXIES = TrustedProxies(map(ip_network, ("10.0.0.0/8", "2001:db8:1::/48")))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # nobody trusted says so
        ("10.1.2.3", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.2.3", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),  # the first is the client's own word
        ("10.1.2.3", ["198.51.100.7", "10.9.9.9"], "198.51.100.7"),  # two proxies
        ("10.1.2.3", ["10.4.4.4", "10.9.9.9"], "10.4.4.4"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.7", "unknown"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.7:4711"], "198.51.100.7"),
        ("2001:db8:1::5", ["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        ("2001:db8:1::5", ["2001:DB8:2:0::7"], "2001:db8:2::7"),
        ("2001:db8:2::5", ["198.51.100.7"], "2001:db8:2::5"),
        ("10.1.2.3", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has(peer: str, forwarded_for: list[str], client: str) -> None:
    assert _PROXIES.client_of(peer, forwarded_for) == client


def test_where_no_proxy_is_trusted_the_header_is_nothing() -> None:
    assert TrustedProxies(()).client_of("10.1.2.3", ["198.51.100.7"]) == "10.1.2.3"


def test_an_address_of_ipv4_over_a_socket_of_both_families() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("192.0.2.1") == "192.0.2.1"
    assert plain_address("2001:db8::1") == "2001:db8::1"
