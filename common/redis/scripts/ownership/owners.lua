-- Returns the workers that have pending assignments, each with their number: {{name, number}, ...}.
local assignments = KEYS[1]
local group = ARGV[1]

local pending = redis.pcall('XPENDING', assignments, group)
if pending.err or not pending[4] then return {} end
return pending[4]
