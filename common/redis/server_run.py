"""Whether a Redis server may have forgotten something: it is told by its run.

A server that dies can come back as it was some moments ago, or empty; a replica that takes its place may lack
as much. Whoever counts upwards there (ids of streams, epochs) would give a number again that somebody still
holds. So the run is kept beside each count, and in another run the count goes on far beyond all that can
have been forgotten.
"""

from __future__ import annotations

from typing import Final

# Lua, for a script: the id of the server's run. A server that was started again, or another one, has another.
SERVER_RUN: Final = "string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')"

# Epochs, or connections, that a server may have forgotten of one stream in its last moments, and many more.
FORGOTTEN_NUMBERS: Final = 1000
