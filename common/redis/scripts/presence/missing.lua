-- Returns the members in ARGV that are unknown or whose time has passed.
local register = KEYS[1]

local now = now_ms()
local missing = {}
for _, member in ipairs(ARGV) do
  local until_ms = redis.call('ZSCORE', register, member)
  if not until_ms or tonumber(until_ms) <= now then missing[#missing + 1] = member end
end
return missing
