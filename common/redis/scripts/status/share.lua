-- Returns {the status line, 0}, or {false, how many ms another one's turn to make it still lasts, 0 where it
-- is the caller's}.
local kept, turn = unpack(KEYS)
local look_ms = ARGV[1]

local line = redis.call('GET', kept)
if line then return {line, 0} end
if redis.call('SET', turn, 1, 'NX', 'PX', look_ms) then return {false, 0} end
return {false, math.max(1, redis.call('PTTL', turn))}
