"""Keys of the plain implementation."""

COUNTER = "base:sid"
NEW = "base:new"
GROUP = "asr"


def audio(sid: int) -> str:
    return f"base:{sid}:a"


def results(sid: int) -> str:
    return f"base:{sid}:r"


def channel(ingress: str) -> str:
    return f"base:in:{ingress}"
