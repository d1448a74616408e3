-- Returns the number of a shard's pending assignments.
local assignments = KEYS[1]
local group = ARGV[1]

local pending = redis.pcall('XPENDING', assignments, group)
if pending.err then return 0 end
return pending[1]
