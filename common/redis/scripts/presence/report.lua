-- Writes the hash of a worker, fields after the named arguments, and `run`: the process that writes it. Returns
-- 1, or 0 if another process has written it; `takes` writes it all the same.
local hash = KEYS[1]
local run, takes, ttl_ms = unpack(ARGV)

local writer = redis.call('HGET', hash, 'run')
if writer and writer ~= run and takes == '0' then return 0 end
redis.call('HSET', hash, 'run', run, unpack(ARGV, 4))
redis.call('PEXPIRE', hash, ttl_ms)
return 1
