-- Returns whether another ingress is alive and does not drain. hash_stem: part of an ingress's hash key
-- before its id.
local register = KEYS[1]
local self, hash_stem = unpack(ARGV)

local now = now_ms()
for _, ingress in ipairs(redis.call('ZRANGEBYSCORE', register, '(' .. now, '+inf')) do
  if ingress ~= self and redis.call('HGET', hash_stem .. ingress, 'draining') == '0' then return 1 end
end
return 0
