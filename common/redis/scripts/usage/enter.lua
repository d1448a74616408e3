-- Counts new streams of an API key on one ingress, unless that would pass a bound of the key.
-- Returns 0, or the bound: 1 streams at once, 2 new ones in this minute, 3 audio of this day.
-- A repeat with the same `once` counts nothing.
-- The keys of the minute and of the day are made from their stems here, by the server's clock.
local streams, ingresses, minutes, days, once = unpack(KEYS)
local ingress, mine, new = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, per_minute, per_day = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local streams_ttl_ms, minute_ttl_ms, once_ttl_ms = ARGV[7], ARGV[8], ARGV[9]

if redis.call('EXISTS', once) == 1 then return 0 end
local now = now_ms()
local minute = minutes .. math.floor(now / 60000)
local day = days .. math.floor(now / 86400000)
local others = 0
local fields = redis.call('HGETALL', streams)
for at = 1, #fields, 2 do
  if fields[at] ~= ingress then
    local alive_until = redis.call('ZSCORE', ingresses, fields[at])
    if alive_until and tonumber(alive_until) > now then
      others = others + tonumber(fields[at + 1])
    else
      redis.call('HDEL', streams, fields[at])
    end
  end
end
if most > 0 and others + mine + new > most then return 1 end
if per_minute > 0 and tonumber(redis.call('GET', minute) or '0') + new > per_minute then return 2 end
if per_day > 0 and tonumber(redis.call('GET', day) or '0') >= per_day then return 3 end
redis.call('HSET', streams, ingress, mine + new)
redis.call('PEXPIRE', streams, streams_ttl_ms)
if per_minute > 0 then
  redis.call('INCRBY', minute, new)
  redis.call('PEXPIRE', minute, minute_ttl_ms)
  redis.call('SET', once, 1, 'PX', once_ttl_ms)
end
return 0
