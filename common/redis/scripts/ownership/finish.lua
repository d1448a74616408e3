-- Ends a stream. Returns 1, or 0 if another owner has the epoch, or -1 if the stream is gone from Redis. The
-- stream is kept for a while, because a lost client may come back for the end. Results of a later owner fence
-- this owner, even if the record has lost that owner: the last result was refused then.
local assignments, meta, audio, results, snapshot, ready, text = unpack(KEYS)
local group, entry, stream, owner_epoch, least_ttl_ms = unpack(ARGV)

local epoch, grace = unpack(redis.call('HMGET', meta, 'epoch', 'grace_ms'))
if epoch and epoch ~= owner_epoch then return 0 end
local last = redis.pcall('XREVRANGE', results, '+', '-', 'COUNT', 1)
if epoch and last[1] and tonumber(string.match(last[1][1], '^%d+')) > tonumber(owner_epoch) then return 0 end
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
