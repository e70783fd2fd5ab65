local measure = require "measure"

-- Some distributions install lualogging, which is pure Lua, for older versions of Lua only.
for _, version in ipairs { "5.4", "5.3", "5.2", "5.1" } do
  local path = package.path:gsub("5%.4", version)
  if package.searchpath("logging.file", path) then
    package.path = path
    break
  end
end
local ok, logging = pcall(require, "logging")
if not ok then
  measure.missing "the lualogging module is not installed"
end
local now = measure.clock()

local rows = {}

function rows.disabled(n)
  local log = logging.new(function() end)
  log:setLevel(logging.INFO)
  local start = now()
  for i = 1, n do
    log:debug("x %d", i)
  end
  measure.report { ns = (now() - start) / n * 1e9 }
end

-- It knows no fields: they are a part of the message.
function rows.record(format, n)
  if format ~= "text" then
    measure.missing("it has no " .. format)
  end
  local fields = measure.FIELDS
  measure.records(n, function(path)
    local log = require "logging.file"(path)
    local start = now()
    for i = 1, n do
      log:info("fetched %d bytes  request_id=%s service=%s user=%d",
        i, fields.request_id, fields.service, fields.user)
    end
    return now() - start
  end)
end

measure.main(rows)
