-- Writes names and values of settings, which follow the named argument. Returns the first that differs as
-- {name, value of the cluster}, and writes nothing then; otherwise {}.
local settings, ttl_ms = KEYS[1], ARGV[1]

for i = 2, #ARGV, 2 do
  local have = redis.call('HGET', settings, ARGV[i])
  if have and have ~= ARGV[i + 1] then return {ARGV[i], have} end
end
for i = 2, #ARGV, 2 do redis.call('HSET', settings, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', settings, ttl_ms)
return {}
