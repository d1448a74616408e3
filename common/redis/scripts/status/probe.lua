-- Calls each command that scripts and pipelines of the service call, on keys of a hash, a string, a list, a
-- sorted set and a stream. Returns the first refusal as {command, reason}, or {}.
local channel, ttl_ms = unpack(ARGV)
local hash, text, list, set, stream = unpack(KEYS)

local calls = {
  {'UNLINK', hash}, {'DEL', hash}, {'PEXPIRE', hash, ttl_ms},
  {'TIME'}, {'EXISTS', hash}, {'INFO', 'server'}, {'INFO', 'memory'},
  {'HSET', hash, 'a', 1}, {'HGET', hash, 'a'}, {'HMGET', hash, 'a'}, {'HGETALL', hash}, {'HDEL', hash, 'b'},
  {'HINCRBY', hash, 'a', 1}, {'HSETNX', hash, 'a', 1},
  {'SET', text, 1, 'PX', ttl_ms}, {'GET', text}, {'INCR', text},
  {'RPUSH', list, 'a'}, {'RPUSHX', list, 'a'}, {'LLEN', list}, {'LRANGE', list, 0, -1},
  {'RENAME', list, list},
  {'ZADD', set, 1, 'a'}, {'ZSCORE', set, 'a'}, {'ZCARD', set}, {'ZCOUNT', set, 0, 1}, {'ZREM', set, 'b'},
  {'ZRANGEBYSCORE', set, 0, 1}, {'ZREMRANGEBYSCORE', set, 0, 0}, {'BZMPOP', 0, 1, set, 'MIN'},
  {'XADD', stream, '1-1', 'a', 1}, {'XGROUP', 'CREATE', stream, 'g', '0'}, {'XRANGE', stream, '-', '+'},
  {'XREVRANGE', stream, '+', '-'}, {'XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', stream, '>'},
  {'XPENDING', stream, 'g'}, {'XCLAIM', stream, 'g', 'c', 0, '1-1'}, {'XACK', stream, 'g', '1-1'},
  {'XINFO', 'STREAM', stream}, {'XINFO', 'GROUPS', stream}, {'XTRIM', stream, 'MINID', '1-1'},
  {'XDEL', stream, '1-1'}, {'XGROUP', 'DELCONSUMER', stream, 'g', 'c'}, {'XGROUP', 'DESTROY', stream, 'g'},
  {'PUBLISH', channel, ''},
}
local refused
for _, call in ipairs(calls) do
  local reply = redis.pcall(unpack(call))
  if type(reply) == 'table' and reply.err then refused = {call[1], reply.err} break end
end
redis.pcall('DEL', unpack(KEYS))
return refused or {}
