-- Writes what is served: names and values, which follow the named argument. Returns the first that differs
-- as {name, value of the cluster, its model}, or {}; then nothing is written. The first one is the model's
-- name for people, which is not compared: a folder has another path on each machine.
local model, ttl_ms = KEYS[1], ARGV[1]

for i = 4, #ARGV, 2 do
  local have = redis.call('HGET', model, ARGV[i])
  if have and have ~= ARGV[i + 1] then return {ARGV[i], have, redis.call('HGET', model, ARGV[2])} end
end
redis.call('HSETNX', model, ARGV[2], ARGV[3])
for i = 4, #ARGV, 2 do redis.call('HSET', model, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', model, ttl_ms)
return {}
