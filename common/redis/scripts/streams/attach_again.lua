-- Moves a stream again to the ingress that had attached it, if Redis has lost that and no other ingress has
-- attached it since. Returns 1, or 0 if there is nothing to restore. Tokens are hashes here, '' for none.
local meta = KEYS[1]
local ingress, connection, token, before = unpack(ARGV)

if redis.call('EXISTS', meta) == 0 then return 0 end
local now = redis.call('HMGET', meta, 'attached', 'connection')
if tonumber(now[1] or '1') >= tonumber(connection) then return 0 end
redis.call('HSET', meta, 'ingress', ingress, 'attached', connection)
-- A later owner may have set it beyond all lost numbers.
if tonumber(now[2] or '1') < tonumber(connection) then redis.call('HSET', meta, 'connection', connection) end
if token ~= '' then redis.call('HSET', meta, 'token', token, 'token_before', before) end
return 1
