-- Returns the members whose time has passed.
local register = KEYS[1]

local now = now_ms()
return redis.call('ZRANGEBYSCORE', register, '-inf', now)
