-- Moves a stream again to the ingress that had attached it, where Redis has forgotten that and nobody has attached
-- it since. Returns 1, or 0 where there is nothing to put back. Tokens are hashes here, '' for none.
local meta = KEYS[1]
local ingress, connection, token, before = unpack(ARGV)

if redis.call('EXISTS', meta) == 0 then return 0 end
local now = redis.call('HMGET', meta, 'attached', 'connection')
if tonumber(now[1] or '1') >= tonumber(connection) then return 0 end
redis.call('HSET', meta, 'ingress', ingress, 'attached', connection)
-- An owner that came since may have put it beyond all that was forgotten.
if tonumber(now[2] or '1') < tonumber(connection) then redis.call('HSET', meta, 'connection', connection) end
if token ~= '' then redis.call('HSET', meta, 'token', token, 'token_before', before) end
return 1
