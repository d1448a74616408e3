-- Begins the list of a snapshot's pieces. If this list is gone, later pieces do not create another one.
local staged = KEYS[1]
local piece, ttl_ms = unpack(ARGV)

redis.call('UNLINK', staged)
redis.call('RPUSH', staged, piece)
return redis.call('PEXPIRE', staged, ttl_ms)
