-- Returns the id of the last entry that a stream's audio ever had, or nil for a stream that is gone.
local audio = KEYS[1]

local info = redis.pcall('XINFO', 'STREAM', audio)
if info.err then return false end
for at = 1, #info, 2 do
  if info[at] == 'last-generated-id' then return info[at + 1] end
end
