-- Takes up to `most` members out of the first of the sets that has any, those with the lowest scores first.
-- Returns the set and pairs of member and score, as BZMPOP does, or nil.
local most = ARGV[1]

for _, ready in ipairs(KEYS) do
  local flat = redis.call('ZRANGEBYSCORE', ready, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  if #flat > 0 then
    local members, pairs_of = {}, {}
    for at = 1, #flat, 2 do
      members[#members + 1] = flat[at]
      pairs_of[#pairs_of + 1] = {flat[at], flat[at + 1]}
    end
    redis.call('ZREM', ready, unpack(members))
    return {ready, pairs_of}
  end
end
return false
