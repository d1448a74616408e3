-- Removes a worker whose lease has lapsed; a worker that came back stays.
local workers, hash = unpack(KEYS)
local worker = ARGV[1]

local now = now_ms()
local until_ms = redis.call('ZSCORE', workers, worker)
if until_ms and tonumber(until_ms) > now then return 0 end
redis.call('ZREM', workers, worker)
redis.call('DEL', hash)
return 1
