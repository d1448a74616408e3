-- Notes that a stream that changes its owner has ended no process; `cleared` is 1 if it got past the audio
-- that it was suspected for.
local meta = KEYS[1]
local epoch, cleared = unpack(ARGV)

if redis.call('HGET', meta, 'epoch') ~= epoch then return 0 end
redis.call('HSET', meta, 'let_go', epoch)
if cleared == '1' then
  redis.call('HDEL', meta, 'died_at', 'died_to', 'deaths', 'alone', 'within')
end
return 1
