-- Returns the members whose time has passed; none to a member whose own has: the server may have stood still,
-- and then the others are no more dead than it is.
local register = KEYS[1]
local member = ARGV[1]

local now = now_ms()
local until_ms = redis.call('ZSCORE', register, member)
if not until_ms or tonumber(until_ms) <= now then return {} end
return redis.call('ZRANGEBYSCORE', register, '-inf', now)
