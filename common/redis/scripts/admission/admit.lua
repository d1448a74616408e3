-- Admits one more stream: {1, stream id}, or {0, 'full', 'memory' or 'no_worker', number of workers whose lease lapsed
-- just now}. A repeat with the same `once` returns the same stream. The capacity of all workers bounds the
-- cluster as max_num_streams does; a draining worker takes no new stream but keeps its own. Memory is that of
-- the server of shard 0, on which this runs; an ingress checks the servers of its own streams.
--
-- The shard of an id is its remainder by the number of shards, so a stream for a given shard uses up to that
-- many numbers. In each run of the server ids begin at its clock, in milliseconds, times the number of
-- shards: ids of an earlier run, even with its counter lost, are less as long as fewer than a thousand
-- streams a second are admitted. A server whose clock is behind goes on from the counter, beyond all ids that
-- it may have lost.
local counter, admissions, workers, once, counter_run = unpack(KEYS)
local max_num_streams, ttl_ms, worker_stem, once_ttl_ms, counter_ttl_ms, register_ttl_ms, wanted,
  memory_limit, forgotten_streams, may_come_back_ms, shards, shard = unpack(ARGV)

local given = redis.call('GET', once)
if given then return {1, tonumber(given)} end
local now = now_ms()
local limit = 0
local open = false
local lapsed = redis.call('ZCOUNT', workers, now - may_come_back_ms, now)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '(' .. now, '+inf')) do
  local state = redis.call('HMGET', worker_stem .. worker, 'capacity', 'draining', 'owned')
  if state[1] and state[2] ~= '1' then
    open = true
    limit = limit + tonumber(state[1])
  else
    limit = limit + tonumber(state[3] or '0')
  end
end
if not open then return {0, 'no_worker', lapsed} end
redis.call('ZREMRANGEBYSCORE', admissions, '-inf', now)
local admitted = redis.call('ZCARD', admissions)
if admitted >= tonumber(max_num_streams) then return {0, 'full', 0} end
if admitted >= limit then return {0, 'full', lapsed} end
local memory = redis.call('INFO', 'memory')
local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
local used = tonumber(string.match(memory, '\nused_memory:(%d+)'))
if most > 0 and used > most * memory_limit then return {0, 'memory', 0} end
local stream = tonumber(wanted)
if stream == 0 then
  local run = server_run()
  if redis.call('GET', counter_run) ~= run then
    local last = tonumber(redis.call('GET', counter) or '0')
    redis.call('SET', counter, string.format('%d', math.max(now * shards, last + forgotten_streams * shards)))
  end
  redis.call('SET', counter_run, run, 'PX', counter_ttl_ms)
  stream = redis.call('INCR', counter)
  local skipped = (shard - stream) % shards
  if tonumber(shard) >= 0 and skipped > 0 then stream = redis.call('INCRBY', counter, skipped) end
  redis.call('PEXPIRE', counter, counter_ttl_ms)
end
redis.call('ZADD', admissions, now + ttl_ms, stream)
redis.call('PEXPIRE', admissions, register_ttl_ms)
redis.call('SET', once, stream, 'PX', once_ttl_ms)
return {1, stream}
