-- Returns a stream's record, names and values flat.
return redis.call('HGETALL', KEYS[1])
