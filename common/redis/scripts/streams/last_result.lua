-- Returns the last entry of a stream's results.
return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
