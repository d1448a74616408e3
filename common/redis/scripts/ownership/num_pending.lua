-- Returns the number of a worker's pending assignments.
local assignments = KEYS[1]
local group, worker = unpack(ARGV)

local consumers = redis.pcall('XPENDING', assignments, group)
if consumers.err or not consumers[4] then return 0 end
for _, consumer in ipairs(consumers[4]) do if consumer[1] == worker then return tonumber(consumer[2]) end end
return 0
