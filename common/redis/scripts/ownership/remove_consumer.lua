-- Removes a worker from the group of a shard. A worker with pending entries stays: deleting it would lose
-- them.
local assignments, ready = unpack(KEYS)
local group, worker = unpack(ARGV)

local pending = redis.pcall('XPENDING', assignments, group, '-', '+', 1, worker)
if not pending.err and pending[1] then return 0 end
redis.call('DEL', ready)
redis.pcall('XGROUP', 'DELCONSUMER', assignments, group, worker)
return 1
