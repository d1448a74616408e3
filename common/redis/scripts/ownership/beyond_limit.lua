-- Runs one command, which the server would refuse by itself where it has reached its limit of memory.
local key, command = KEYS[1], ARGV[1]

return redis.call(command, key, unpack(ARGV, 2))
