-- Makes a worker the owner of a stream. Returns {'gone'}, {'lost'}, {'suspect'} or {'owned', epoch, last
-- seq, samples acknowledged by then, record, poison, bytes of kept text}. The audio group of the new epoch
-- begins at the checkpoint. The entry with seq 0 fences: after it, an earlier owner can add no result.
--
-- An owner that neither finished the stream nor let it go has died, maybe of the stream. If it had enough
-- audio for a step, that audio went from `died_at` to `died_to`. `deaths` counts the deaths before the stream
-- was past that audio, `alone` the deaths among them of a process that ran no other stream. `together` is the
-- number of suspects that the present owner runs, 0 for an ordinary worker; `within` is the number that may
-- run with this one from now on.
--
-- If the record is of another run of the server, Redis may have lost owners that still write, and ingresses
-- that still append. So the new epoch and the next connection get numbers beyond theirs.
local assignments, meta, audio, results, ready, text = unpack(KEYS)
local group, worker, entry, stream, ready_ttl_ms, running_together, chunk_ms, suspicious_deaths,
  poisonous_deaths, suspects_divisor, forgotten_numbers, max_results = unpack(ARGV)

local function behind(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  a1, a2, b1, b2 = tonumber(a1), tonumber(a2), tonumber(b1), tonumber(b2)
  return a1 > b1 or (a1 == b1 and a2 > b2)
end
local function reach(id)
  local found = redis.call('XRANGE', audio, id, id)[1]
  if not found then return 0, 0, false end
  local from, size, final = 0, 0, false
  for i = 1, #found[2], 2 do
    local name, value = found[2][i], found[2][i + 1]
    if name == 'o' then from = tonumber(value) end
    if name == 'p' then size = #value / 2 end
    if name == 'f' then size = #value / 4 end
    if name == 'u' or name == 'a' then size = #value end
    -- A step at the end of the stream, or at a finalize, needs no whole chunk.
    if name == 'x' or name == 'z' then final = true end
  end
  return from, from + size, final
end
local function fills_a_step(first, last)
  local from = reach(first)
  local _, to, final = reach(last)
  return final or to - from >= redis.call('HGET', meta, 'sample_rate') * chunk_ms / 1000
end
local pending = redis.pcall('XPENDING', assignments, group, entry, entry, 1)
if pending.err or not pending[1] or pending[1][2] ~= worker then return {'lost'} end
if redis.call('EXISTS', meta) == 0 or redis.call('HGET', meta, 'finished') then
  redis.call('XACK', assignments, group, entry)
  redis.call('XDEL', assignments, entry)
  return {'gone'}
end
local before = redis.call('HGET', meta, 'epoch')
local past = redis.call('HMGET', meta, 'let_go', 'counted', 'died_to', 'deaths', 'alone', 'together')
local deaths, alone = tonumber(past[4] or '0'), tonumber(past[5] or '0')
if before ~= '0' and past[1] ~= before and past[2] ~= before then
  redis.call('HSET', meta, 'counted', before)
  local flight = redis.pcall('XPENDING', audio, 'asr-' .. before)
  if not flight.err and flight[1] > 0 and fills_a_step(flight[2], flight[3]) then
    if not past[3] or behind(flight[2], past[3]) then
      deaths, alone = 0, 0
      redis.call('HSET', meta, 'died_at', flight[2])
      redis.call('HDEL', meta, 'within')
    end
    deaths = deaths + 1
    local together = tonumber(past[6] or '0')
    if together == 1 then alone = alone + 1 end
    if together > 1 then
      redis.call('HSET', meta, 'within', math.max(1, math.floor(together / suspects_divisor)))
    end
    redis.call('HSET', meta, 'died_to', flight[3], 'deaths', deaths, 'alone', alone)
  end
end
local poison = alone >= tonumber(poisonous_deaths)
if deaths >= tonumber(suspicious_deaths) and not poison and running_together == '0' then return {'suspect'} end
local run = server_run()
local step = redis.call('HGET', meta, 'run') == run and 1 or tonumber(forgotten_numbers)
local epoch = redis.call('HINCRBY', meta, 'epoch', step)
redis.call('HSET', meta, 'run', run, 'owner', worker, 'together', running_together)
if step > 1 then
  redis.call('HSETNX', meta, 'connection', 1)
  redis.call('HINCRBY', meta, 'connection', step)
end
local ttl = redis.call('HGET', meta, 'ttl_ms')
local start = redis.call('HGET', meta, 'ck_entry') or '0'
redis.call('XGROUP', 'CREATE', audio, 'asr-' .. epoch, start, 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', audio, 'asr-' .. before)
redis.call('PEXPIRE', audio, ttl)
local seq, acked = '0', '0'
local last = redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)[1]
if last then
  seq, acked = last[2][8] or string.match(last[1], '%d+$'), last[2][4]
end
redis.call('XADD', results, 'MAXLEN', '~', max_results, epoch .. '-0', 'k', 'o', 'a', acked, 'd', worker, 'q', seq)
redis.call('PEXPIRE', results, ttl)
redis.call('ZADD', ready, 'NX', 0, stream)
redis.call('PEXPIRE', ready, ready_ttl_ms)
return {'owned', epoch, seq, acked, redis.call('HGETALL', meta), poison and 1 or 0, redis.call('STRLEN', text)}
