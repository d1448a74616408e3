-- Returns {the status line, 0}, or {false, remaining ms of another process's turn to make it, 0 for the
-- caller's turn}.
local kept, turn = unpack(KEYS)
local look_ms = ARGV[1]

local line = redis.call('GET', kept)
if line then return {line, 0} end
if redis.call('SET', turn, 1, 'NX', 'PX', look_ms) then return {false, 0} end
return {false, math.max(1, redis.call('PTTL', turn))}
