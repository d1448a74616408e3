-- Makes a staged snapshot the stream's checkpoint; the checkpoint's other fields follow the named arguments.
-- Returns 1, or 0 if another owner has the epoch, the stream has ended, pieces are missing, or there is a
-- later checkpoint: an owner that hands a stream over may still be writing an older one. Of two checkpoints
-- at the same sample, as between two answers to 'finalize', the one after more results is later.
local meta, audio, snapshot, staged = unpack(KEYS)
local epoch, first_kept, num_pieces, samples, seq = unpack(ARGV)

local record = redis.call('HMGET', meta, 'epoch', 'finished', 'ck_samples', 'ck_seq')
local ahead = tonumber(record[3] or '0') - tonumber(samples)
if record[1] ~= epoch or record[2] or ahead > 0
    or (ahead == 0 and tonumber(record[4] or '0') > tonumber(seq))
    or redis.call('LLEN', staged) ~= tonumber(num_pieces) then
  redis.call('UNLINK', staged)
  return 0
end
redis.call('HSET', meta, 'ck_samples', samples, 'ck_seq', seq, unpack(ARGV, 6))
redis.call('HDEL', meta, 'cold')
redis.call('UNLINK', snapshot)
redis.call('RENAME', staged, snapshot)
redis.call('PEXPIRE', snapshot, redis.call('HGET', meta, 'ttl_ms'))
redis.call('XTRIM', audio, 'MINID', first_kept)
return 1
