"""TLS in addresses of Redis."""

from __future__ import annotations

import pytest

from common.errors import SettingsError
from common.redis.address import TlsOptions, parse_address


def test_tls_takes_files_behind_a_question_mark() -> None:
    address = parse_address("rediss://u:p@host:6380/1?ca=/etc/ca.pem&cert=/c%20d.pem&key=/k.pem&name=r")
    assert address.tls
    assert address.db == 1
    assert address.tls_options == TlsOptions(ca="/etc/ca.pem", cert="/c d.pem", key="/k.pem", name="r")
    sentinel = parse_address("rediss+sentinel://host/master/2?ca=/etc/ca.pem")
    assert sentinel.tls_options.ca == "/etc/ca.pem"
    assert (sentinel.master, sentinel.db) == ("master", 2)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host/0?ca=/etc/ca.pem",
        "rediss://host/0?verify=no",
        "rediss://host/0?ca=",
        "rediss://host/0?ca=/a&ca=/b",
        "rediss://host/0?cert=/c.pem",
        "rediss://host/0?key=/k.pem",
    ],
)
def test_other_options_of_tls_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        parse_address(url)


def test_what_an_address_does_not_say_comes_from_the_flags() -> None:
    flags = TlsOptions(ca="/ca.pem", cert="/flags.pem", key="/flags.key", name="redis")
    assert TlsOptions().completed(flags) == flags
    assert TlsOptions(ca="/own.pem", name="other").completed(flags) == TlsOptions(
        ca="/own.pem", cert="/flags.pem", key="/flags.key", name="other"
    )
    own = TlsOptions(cert="/own.pem", key="/own.key")
    assert own.completed(flags) == TlsOptions("/ca.pem", "/own.pem", "/own.key", "redis")
