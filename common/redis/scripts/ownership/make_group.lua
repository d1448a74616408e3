-- Creates the group of the workers on a shard's assignments, if there is none.
local assignments = KEYS[1]
local group, ttl_ms = unpack(ARGV)

local made = redis.pcall('XGROUP', 'CREATE', assignments, group, '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
return redis.call('PEXPIRE', assignments, ttl_ms)
