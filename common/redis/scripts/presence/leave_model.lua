-- Takes what is served away where no other worker lives; the lease of whoever else lives keeps it.
local model, workers = unpack(KEYS)
local leaving = ARGV[1]

local now = now_ms()
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. now, '+inf')) do
  if worker ~= leaving then return 0 end
end
return redis.call('DEL', model)
