#!lua flags=allow-oom
-- The beginning of every script. All of them may write where the server has reached its limit of memory. What
-- they write is little, or frees more than it takes (a snapshot); without them nothing would be freed there.
-- Audio is appended by no script, so the server refuses it.

-- The server's clock, in milliseconds: no other clock is used.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The id of the server's run. A server that was started again, or another one, has another.
--
-- A server that dies can come back with the state of some moments ago, or empty; a replica that takes its
-- place may lack as much. A counter there (ids of streams, epochs) would repeat a number that is still in
-- use. So the run is kept beside each count, and in another run the count goes on far beyond all numbers that
-- can have been lost.
local function server_run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end
