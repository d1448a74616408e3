-- Returns {entries not delivered, entries delivered and not acknowledged} of the newest group. The server
-- knows the lag of a group unless entries were deleted from its middle; then they are counted.
local audio = KEYS[1]

local groups = redis.pcall('XINFO', 'GROUPS', audio)
if groups.err then return {0, 0} end
local newest, best = nil, -1
for _, flat in ipairs(groups) do
  local group = {}
  for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
  local epoch = tonumber(string.match(group['name'], '^asr%-(%d+)$') or '-1')
  if epoch > best then newest, best = group, epoch end
end
if not newest then return {0, 0} end
local lag = newest['lag']
if not lag then
  lag = #redis.call('XRANGE', audio, '(' .. newest['last-delivered-id'], '+')
end
return {lag, newest['pending']}
