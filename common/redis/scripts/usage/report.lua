-- Sets the number of an ingress's streams of an API key, and adds audio to the key's day. Returns the day's
-- audio in seconds. A repeat with the `once` of the last report adds nothing.
local streams, days, reported = KEYS[1], KEYS[2], KEYS[3]
local ingress, mine, audio_s, once = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local streams_ttl_ms, day_ttl_ms, report_ttl_ms = ARGV[5], ARGV[6], ARGV[7]

if mine > 0 then
  redis.call('HSET', streams, ingress, mine)
  redis.call('PEXPIRE', streams, streams_ttl_ms)
else
  redis.call('HDEL', streams, ingress)
end
local day = days .. math.floor(now_ms() / 86400000)
if tonumber(audio_s) > 0 and redis.call('GET', reported) ~= once then
  redis.call('INCRBYFLOAT', day, audio_s)
  redis.call('PEXPIRE', day, day_ttl_ms)
  redis.call('SET', reported, once, 'PX', report_ttl_ms)
end
return redis.call('GET', day) or '0'
