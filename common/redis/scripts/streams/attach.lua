-- Moves a stream to another ingress; returns the number of the new connection. Returns 0 for a stream that
-- has ended, or that has another ingress or connection than the expected one ('' for any), and -1 if the
-- token that was shown is none of the stream's ('' if no token was shown). A token that was shown stays valid
-- until the new one is confirmed (confirm.lua): a client that loses the answer still has it. Tokens are
-- hashes here.
local meta = KEYS[1]
local ingress, expected_ingress, expected_connection, forgotten_numbers, shown, new = unpack(ARGV)

if redis.call('EXISTS', meta) == 0 then return 0 end
if shown ~= '' then
  local tokens = redis.call('HMGET', meta, 'token', 'token_before')
  if tokens[1] ~= shown and tokens[2] ~= shown then return -1 end
  redis.call('HSET', meta, 'token', new, 'token_before', shown)
end
if redis.call('HGET', meta, 'finished') then return 0 end
if expected_ingress ~= '' then
  local now = redis.call('HMGET', meta, 'ingress', 'connection')
  if now[1] ~= expected_ingress or (now[2] or '1') ~= expected_connection then return 0 end
end
redis.call('HSET', meta, 'ingress', ingress)
redis.call('HSETNX', meta, 'connection', 1)
local step = redis.call('HGET', meta, 'run') == server_run() and 1 or tonumber(forgotten_numbers)
local number = redis.call('HINCRBY', meta, 'connection', step)
redis.call('HSET', meta, 'attached', number)
return number
