-- Returns the assignments of a shard: its streams that have begun and not ended. As a script, so that a
-- reply comes flat in RESP2.
return redis.call('XRANGE', KEYS[1], '-', '+')
