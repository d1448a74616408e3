-- Makes the previous token invalid, since the client has this one. If this is not the stream's token, the
-- client has come back again meanwhile, and nothing changes. Returns 1. Tokens are hashes here.
local meta, token = KEYS[1], ARGV[1]

if redis.call('HGET', meta, 'token') == token then redis.call('HSET', meta, 'token_before', '') end
return 1
