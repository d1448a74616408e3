"""TLS in addresses of Redis."""

from __future__ import annotations

import pytest

from common.errors import SettingsError
from common.redis.address import TlsFiles, parse_address


def test_tls_takes_files_behind_a_question_mark() -> None:
    address = parse_address("rediss://u:p@host:6380/1?ca=/etc/ca.pem&cert=/c%20d.pem&key=/k.pem")
    assert address.tls
    assert address.db == 1
    assert address.tls_files == TlsFiles(ca="/etc/ca.pem", cert="/c d.pem", key="/k.pem")
    sentinel = parse_address("rediss+sentinel://host/master/2?ca=/etc/ca.pem")
    assert sentinel.tls_files.ca == "/etc/ca.pem"
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
