-- Takes or renews a lease. Returns 1 if the member was alive, 0 if its time had passed, -1 if it was unknown.
local register = KEYS[1]
local member, ttl_ms, register_ttl_ms = unpack(ARGV)

local now = now_ms()
local until_ms = redis.call('ZSCORE', register, member)
redis.call('ZADD', register, now + ttl_ms, member)
redis.call('PEXPIRE', register, register_ttl_ms)
if not until_ms then return -1 end
if tonumber(until_ms) <= now then return 0 end
return 1
