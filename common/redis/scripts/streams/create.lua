-- Writes a stream's record, creates its audio, and offers it to the workers. The record's other fields follow
-- the named arguments. A repeat does nothing. A stream that is created anew may have live owners that Redis
-- has lost. So its epoch is beyond theirs, and its run is left empty, which raises the next epoch further
-- still.
local meta, audio, assignments = unpack(KEYS)
local ttl_ms, register_ttl_ms, stream, version, anew, epoch = unpack(ARGV)

if redis.call('EXISTS', meta) == 1 then return 0 end
redis.call('HSET', meta, 'run', anew == '1' and '' or server_run(), 'epoch', epoch, unpack(ARGV, 7))
redis.call('PEXPIRE', meta, ttl_ms)
redis.call('XGROUP', 'CREATE', audio, 'asr-' .. epoch, '0', 'MKSTREAM')
redis.call('PEXPIRE', audio, ttl_ms)
redis.call('XADD', assignments, '*', 'sid', stream, 'v', version)
redis.call('PEXPIRE', assignments, register_ttl_ms)
return 1
