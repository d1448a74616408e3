-- What stands before every script.

-- The server's clock, in milliseconds: so nobody else's matters.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The id of the server's run. A server that was started again, or another one, has another.
--
-- A server that dies can come back as it was some moments ago, or empty; a replica that takes its place may lack as
-- much. Whoever counts upwards there (ids of streams, epochs) would give a number again that somebody still holds. So
-- the run is kept beside each count, and in another run the count goes on far beyond all that can have been forgotten.
local function server_run()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end
