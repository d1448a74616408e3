"""By which names of a server a page may come, so that no name can be bent to it."""

from __future__ import annotations

import pytest

from common.settings import parse
from ingress.auth.hosts import ANY_HOST, Hosts
from ingress.auth.origins import Origins
from ingress.request import Request


@pytest.mark.parametrize(
    ("host", "included"),
    [
        ("127.0.0.1:8000", True),
        ("192.168.1.5", True),
        ("[::1]:8000", True),
        ("[2001:db8::1]", True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("a.localhost", True),
        ("speech", True),
        ("speech.local:8000", True),
        ("speech.internal", True),
        ("speech.home.arpa", True),
        ("evil.example:8000", False),
        ("evil.example.", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evillocal.example", False),
        ("notlocalhost.com", False),
        ("[evil.example]:8000", False),
        ("0x7f.1", False),  # no address as a browser writes it
        ("", False),
        (":8000", False),
    ],
)
def test_addresses_and_local_names_are_the_servers_and_others_are_not(host: str, included: bool) -> None:
    assert Hosts(()).include(host) is included
    assert ANY_HOST.include(host)


def test_names_that_are_allowed_are_the_servers() -> None:
    hosts = Hosts(("speech.example",))
    assert hosts.include("speech.example:8000")
    assert hosts.include("SPEECH.example")
    assert not hosts.include("other.speech.example")


@pytest.mark.parametrize(
    ("name", "allowed", "enters"),
    [
        ("evil.example:8000", (), False),
        ("evil.example:8000", ("evil.example",), True),
        ("127.0.0.1:8000", (), True),
        ("localhost:8000", (), True),
    ],
)
def test_a_page_of_the_own_host_enters_by_a_name_that_is_the_servers(
    name: str, allowed: tuple[str, ...], enters: bool
) -> None:
    origins = Origins((), Hosts(allowed))
    headers = (("host", name), ("origin", f"http://{name}"))
    assert origins.allow(Request("GET", "/", "", headers, "127.0.0.1")) is enters
    # A program names no origin, and may use any name.
    assert origins.allow(Request("GET", "/", "", headers[:1], "127.0.0.1"))
    # An origin that is allowed is allowed by whatever name the page reaches the server.
    named = Origins((f"http://{name}",), Hosts(()))
    assert named.allow(Request("GET", "/", "", headers, "127.0.0.1"))


@pytest.mark.parametrize(
    ("argv", "included"),
    [
        ([], False),
        (["--allowed-hosts", "speech.example,other.example"], True),
        (["--allowed-hosts", "*"], True),
        (["--host", "speech.example"], True),
        (["--auth-keys-file", "keys.json"], True),
        (["--auth-keys-file", "keys.json", "--allowed-hosts", "other.example"], False),
    ],
)
def test_flags_say_which_names_are_the_servers(argv: list[str], included: bool) -> None:
    assert Hosts.of(parse("ingress", argv, {})).include("speech.example:8000") is included
