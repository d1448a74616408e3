-- Returns when a lease ends, in milliseconds by the server's clock; 0 for one that nobody holds.
local register = KEYS[1]
local member = ARGV[1]

local until_ms = tonumber(redis.call('ZSCORE', register, member) or '0')
return until_ms > now_ms() and until_ms or 0
