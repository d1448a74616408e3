-- States how many streams of an API key an ingress has, and adds audio to the key's day. Returns the audio of
-- the day, in seconds.
local streams, days = KEYS[1], KEYS[2]
local ingress, mine, audio_s = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local streams_ttl_ms, day_ttl_ms = ARGV[4], ARGV[5]

if mine > 0 then
  redis.call('HSET', streams, ingress, mine)
  redis.call('PEXPIRE', streams, streams_ttl_ms)
else
  redis.call('HDEL', streams, ingress)
end
local day = days .. math.floor(now_ms() / 86400000)
if tonumber(audio_s) > 0 then
  redis.call('INCRBYFLOAT', day, audio_s)
  redis.call('PEXPIRE', day, day_ttl_ms)
end
return redis.call('GET', day) or '0'
