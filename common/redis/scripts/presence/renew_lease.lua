-- Takes or renews a lease. Returns 1 if the member was alive, 0 if its time had passed, -1 if it was unknown.
--
-- Leases that lapse together show that the server stood still, and not that their workers are dead. The first
-- member that is back gives the others, whose time has passed since less than a lease before its own, a lease
-- in which they can come back. A process that starts (`begins`) gives none: its predecessor has died.
local register = KEYS[1]
local member, ttl_ms, register_ttl_ms, begins = unpack(ARGV)

local now = now_ms()
local until_ms = tonumber(redis.call('ZSCORE', register, member) or '-1')
redis.call('ZADD', register, now + ttl_ms, member)
redis.call('PEXPIRE', register, register_ttl_ms)
if until_ms < 0 then return -1 end
if until_ms > now then return 1 end
-- A lease until 0 was released.
if until_ms == 0 or begins == '1' then return 0 end
for _, other in ipairs(redis.call('ZRANGEBYSCORE', register, math.max(1, until_ms - ttl_ms), now)) do
  redis.call('ZADD', register, 'XX', now + ttl_ms, other)
end
return 0
