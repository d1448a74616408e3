-- Begins the list of a snapshot's pieces. Those after the first make no list of their own where this one is
-- gone.
local staged = KEYS[1]
local piece, ttl_ms = unpack(ARGV)

redis.call('UNLINK', staged)
redis.call('RPUSH', staged, piece)
return redis.call('PEXPIRE', staged, ttl_ms)
