-- Keeps the facts of a poison stream. Returns 1, or 0 if another owner has the epoch.
local meta, audio, dead, dead_audio = unpack(KEYS)
local stream, epoch, ttl_ms, max_entries = unpack(ARGV)

if redis.call('HGET', meta, 'epoch') ~= epoch then return 0 end
redis.call('DEL', dead, dead_audio)
redis.call('HSET', dead, 'stream', stream, 'ended_ms', now_ms())
local names = {'died_at', 'deaths', 'alone', 'options', 'sample_rate', 'created_ms', 'ck_samples', 'ck_seq'}
local values = redis.call('HMGET', meta, unpack(names))
for i, name in ipairs(names) do if values[i] then redis.call('HSET', dead, name, values[i]) end end
redis.call('PEXPIRE', dead, ttl_ms)
local entries = redis.call('XRANGE', audio, values[1] or '-', '+', 'COUNT', max_entries)
for _, entry in ipairs(entries) do redis.call('XADD', dead_audio, entry[1], unpack(entry[2])) end
redis.call('PEXPIRE', dead_audio, ttl_ms)
return 1
