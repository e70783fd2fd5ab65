--- What the specs of logging share.

local opero = require "opero"

local support = {}

--- Sends records to a list, and nowhere else.
---@param options opero.LoggingConfig? what else is to be configured
---@return opero.LogRecord[] records each with its line as `line`
function support.record(options)
  local records = {}
  options = options or {}
  options.output = function(line, record)
    record.line = line
    records[#records + 1] = record
  end
  opero.configure_logging(options)
  return records
end

--- Everything as the specs found it.
function support.restore()
  opero.configure_logging { level = "info", levels = { opero = "error" } }
  for _, name in ipairs { "app", "app.level", "my_app" } do
    opero.get_logger(name):set_level()
  end
  for name in pairs(opero.get_logger():context()) do
    opero.get_logger():remove_context(name)
  end
end

--- The messages of records, in their order.
---@param records opero.LogRecord[]
---@return string[]
function support.messages(records)
  local list = {}
  for i, record in ipairs(records) do
    list[i] = record.message
  end
  return list
end

return support
