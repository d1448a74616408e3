-- Lets a worker's lease lapse now.
local register, hash = unpack(KEYS)
local member = ARGV[1]

redis.call('ZADD', register, 'XX', 0, member)
return redis.call('DEL', hash)
