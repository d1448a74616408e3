-- Finds the position after a result: ARGV has its number, or is empty for the one before the last. Returns
-- the number of the first kept result, the number of the last result, and the epoch in which the wanted
-- results begin.
local results = KEYS[1]

-- The number of the last result up to this entry; an owner notice states it.
local function number(entry)
  return tonumber(entry[2][8] or string.match(entry[1], '%d+$'))
end
local first = redis.call('XRANGE', results, '-', '+', 'COUNT', 1)[1]
if not first then return {} end
local at = redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)[1]
local last = number(at)
local wanted = tonumber(ARGV[1]) or math.max(0, last - 1)
local from = number(first) + (string.match(first[1], '-0$') and 1 or 0)
while true do
  local epoch = string.match(at[1], '^%d+')
  local notice = redis.call('XRANGE', results, epoch .. '-0', epoch .. '-0')[1]
  local before = notice and number(notice) > wanted
    and redis.call('XREVRANGE', results, '(' .. notice[1], '-', 'COUNT', 1)[1]
  if not before then return {from, last, tonumber(epoch)} end
  at = before
end
