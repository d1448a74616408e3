"""Hosts and ports in text form: an IPv6 address has brackets where a port follows."""

from __future__ import annotations


def bare_host(host: str) -> str:
    """Return a host without the brackets of an IPv6 address, as sockets need it."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def host_and_port(host: str, port: int) -> str:
    """Return `host:port`, or `[address]:port` for an IPv6 address."""
    host = bare_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
