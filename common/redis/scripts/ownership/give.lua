-- Transfers one pending assignment to another worker; returns 0 if the first worker does not have it.
local assignments = KEYS[1]
local group, worker, heir, entry = unpack(ARGV)

local pending = redis.pcall('XPENDING', assignments, group, entry, entry, 1)
if pending.err or not pending[1] or pending[1][2] ~= worker then return 0 end
redis.call('XCLAIM', assignments, group, heir, 0, entry)
return 1
