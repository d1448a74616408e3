-- Renews the expiry of every stream; a lapsed stream is admitted again, since it is active. The
-- streams follow the two named arguments.
local admissions = KEYS[1]
local ttl_ms, register_ttl_ms = ARGV[1], ARGV[2]

local now = now_ms()
for i = 3, #ARGV do redis.call('ZADD', admissions, now + ttl_ms, ARGV[i]) end
redis.call('PEXPIRE', admissions, register_ttl_ms)
return #ARGV - 2
