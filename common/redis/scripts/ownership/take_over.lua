-- Transfers pending assignments of one worker to another. Returns the last id read, if there may be more, and
-- the entries.
local assignments = KEYS[1]
local group, from, to, count, first = unpack(ARGV)

local pending = redis.pcall('XPENDING', assignments, group, first, '+', count, from)
if pending.err or not pending[1] then return {'', {}} end
local ids = {}
for i, entry in ipairs(pending) do ids[i] = entry[1] end
local taken = redis.call('XCLAIM', assignments, group, to, 0, unpack(ids))
local found = {}
for _, entry in ipairs(taken) do if entry then found[#found + 1] = entry end end
local last = #ids == tonumber(count) and ids[#ids] or ''
return {last, found}
