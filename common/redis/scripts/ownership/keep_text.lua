-- Keeps the text of a stream up to result `seq`: writes `text` at byte `at`; `chars` is the number of code
-- points of the kept text then. Returns 1, or 0 if another owner has the epoch, or nil if the text before it
-- is gone: Redis may have lost its last writes. A repeat changes nothing.
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
