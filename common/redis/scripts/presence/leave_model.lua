-- Removes the facts of the served model if no other worker lives; the lease of a live worker keeps them.
local model, workers = unpack(KEYS)
local leaving = ARGV[1]

local now = now_ms()
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. now, '+inf')) do
  if worker ~= leaving then return 0 end
end
return redis.call('DEL', model)
