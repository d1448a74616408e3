-- Returns the assignments of a shard: its streams that have begun and not ended. It is a script so that the
-- reply is flat, as in RESP2.
return redis.call('XRANGE', KEYS[1], '-', '+')
