-- Withdraws a stream that no worker has claimed. A worker that claims it later finds it gone, and removes its
-- assignment.
local meta, audio, results = unpack(KEYS)

if redis.call('HGET', meta, 'owner') then return 0 end
redis.call('DEL', meta, audio, results)
return 1
