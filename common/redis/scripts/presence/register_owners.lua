-- Registers owners of streams that the register does not know, with a lease from now on: a worker that lives
-- renews it, one that is dead is replaced when it lapses. The register may have been lost with its server,
-- while streams are on others; or a worker was given a stream in the moment in which it was removed.
local register = KEYS[1]
local ttl_ms, register_ttl_ms = unpack(ARGV)

local until_ms = now_ms() + ttl_ms
local num_new = 0
for i = 3, #ARGV do num_new = num_new + redis.call('ZADD', register, 'NX', until_ms, ARGV[i]) end
if num_new > 0 then redis.call('PEXPIRE', register, register_ttl_ms) end
return num_new
