-- Returns the last result whose text is kept, and the kept text, of the same moment.
local meta, kept = unpack(KEYS)
return {redis.call('HGET', meta, 'text_seq') or '0', redis.call('GET', kept) or ''}
