-- Returns the workers that have pending assignments, each with their number: {{name, number}, ...}. Renews the
-- expiry of the assignments: streams may go on for days in which no other begins.
local assignments = KEYS[1]
local group, register_ttl_ms = unpack(ARGV)

redis.call('PEXPIRE', assignments, register_ttl_ms)
local pending = redis.pcall('XPENDING', assignments, group)
if pending.err or not pending[4] then return {} end
return pending[4]
