-- Ends a stream. Returns 1, 0 where the epoch is another's, -1 where the stream had left Redis. A client
-- that was lost may come back for the end: so long it is kept.
local assignments, meta, audio, results, snapshot, ready, text = unpack(KEYS)
local group, entry, stream, owner_epoch, least_ttl_ms = unpack(ARGV)

local epoch, grace = unpack(redis.call('HMGET', meta, 'epoch', 'grace_ms'))
if epoch and epoch ~= owner_epoch then return 0 end
local ttl = math.max(least_ttl_ms, grace or 0)
redis.pcall('XACK', assignments, group, entry)
redis.call('XDEL', assignments, entry)
redis.call('DEL', audio, snapshot)
redis.call('ZREM', ready, stream)
redis.call('PEXPIRE', results, ttl)
redis.call('PEXPIRE', text, ttl)
if not epoch then return -1 end
redis.call('HSET', meta, 'finished', '1')
redis.call('PEXPIRE', meta, ttl)
return 1
