-- Checks for each call in ARGV, its words joined by spaces, whether the user may make it. Makes none of them.
-- Returns {numbers of the calls that are not permitted, numbers of calls that the server does not know}.
local denied, unknown = {}, {}
for number, call in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(call, '%S+') do words[#words + 1] = word end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not known then
    unknown[#unknown + 1] = number
  elseif not allowed then
    denied[#denied + 1] = number
  end
end
return {denied, unknown}
