-- Registers an ingress, and removes ingresses whose time has passed. The fields of its hash follow the named
-- arguments. Returns its rank among the live ingresses, ordered by name: {rank from 0 on, their number}.
local register, hash = unpack(KEYS)
local ingress, alive_ms, register_ttl_ms, hash_ttl_ms = unpack(ARGV)

local now = now_ms()
redis.call('ZREMRANGEBYSCORE', register, '-inf', now)
redis.call('ZADD', register, now + alive_ms, ingress)
redis.call('PEXPIRE', register, register_ttl_ms)
redis.call('HSET', hash, unpack(ARGV, 5))
redis.call('PEXPIRE', hash, hash_ttl_ms)
local rank, names = 0, redis.call('ZRANGEBYSCORE', register, '-inf', '+inf')
for _, name in ipairs(names) do if name < ingress then rank = rank + 1 end end
return {rank, #names}
