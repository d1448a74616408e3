-- Keeps the text of a stream up to result `seq`: `text` goes at byte `at`, and with it the kept text has so many
-- code points. Returns 1, 0 where the epoch is another's, nil where the text before it is gone: Redis may have
-- forgotten its last moments. A repeat changes nothing.
local meta, kept = unpack(KEYS)
local epoch, at, text, seq, chars = unpack(ARGV)

local record = redis.call('HMGET', meta, 'epoch', 'ttl_ms')
if record[1] ~= epoch then return 0 end
local have = redis.call('STRLEN', kept)
at = tonumber(at)
if have < at then return false end
if have == at then
  redis.call('APPEND', kept, text)
else
  redis.call('SET', kept, (at > 0 and redis.call('GETRANGE', kept, 0, at - 1) or '') .. text)
end
redis.call('PEXPIRE', kept, record[2])
redis.call('HSET', meta, 'text_seq', seq, 'text_chars', chars)
return 1
