-- Notes, until the next checkpoint, that a stream goes on from the last one without its snapshot. Returns 0
-- if another owner has the epoch.
local meta = KEYS[1]
local epoch = ARGV[1]

if redis.call('HGET', meta, 'epoch') ~= epoch then return 0 end
return redis.call('HSET', meta, 'cold', '1')
