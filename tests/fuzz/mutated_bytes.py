"""Bytes that were right, with some of them changed at random."""

from random import Random


def mutated(random: Random, data: bytes) -> bytes:
    """Return the data with a few bytes lost, added, turned or doubled."""
    changed = bytearray(data)
    for _ in range(random.randint(0, 6)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(4):
            case 0:
                changed[at:at] = random.randbytes(random.randint(1, 8))
            case 1:
                del changed[at : at + random.randint(1, 8)]
            case 2 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case _:
                changed += changed[:at]
    return bytes(changed)
