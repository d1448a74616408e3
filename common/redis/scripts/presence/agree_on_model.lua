-- Writes the facts of the served model: names and values, which follow the named arguments. Returns the first
-- fact that differs as {name, value of the cluster, its model}, and writes nothing then; otherwise {}. The
-- first num_told facts are not compared, and the first value of each is kept: a folder has another path on
-- each machine.
local model, ttl_ms, num_told = KEYS[1], ARGV[1], tonumber(ARGV[2])
local first_compared = 3 + 2 * num_told

for i = first_compared, #ARGV, 2 do
  local have = redis.call('HGET', model, ARGV[i])
  if have and have ~= ARGV[i + 1] then return {ARGV[i], have, redis.call('HGET', model, 'model')} end
end
for i = 3, first_compared - 1, 2 do redis.call('HSETNX', model, ARGV[i], ARGV[i + 1]) end
for i = first_compared, #ARGV, 2 do redis.call('HSET', model, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', model, ttl_ms)
return {}
