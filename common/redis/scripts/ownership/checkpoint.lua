-- Makes a staged snapshot the stream's checkpoint; the checkpoint's other fields follow the named arguments.
-- Returns 1, or 0 if another owner has the epoch, the stream has ended, pieces are missing, or there is a
-- later checkpoint: an owner that hands a stream over may still be writing an older one.
local meta, audio, snapshot, staged = unpack(KEYS)
local epoch, first_kept, num_pieces, samples = unpack(ARGV)

local record = redis.call('HMGET', meta, 'epoch', 'finished', 'ck_samples')
if record[1] ~= epoch or record[2] or tonumber(record[3] or '0') > tonumber(samples)
    or redis.call('LLEN', staged) ~= tonumber(num_pieces) then
  redis.call('UNLINK', staged)
  return 0
end
redis.call('HSET', meta, 'ck_samples', samples, unpack(ARGV, 5))
redis.call('HDEL', meta, 'cold')
redis.call('UNLINK', snapshot)
redis.call('RENAME', staged, snapshot)
redis.call('PEXPIRE', snapshot, redis.call('HGET', meta, 'ttl_ms'))
redis.call('XTRIM', audio, 'MINID', first_kept)
return 1
