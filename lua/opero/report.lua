--- Tells of what the policies do: records of the logger "opero", or of one that was given.
--
-- What the caller learns anyway, by an error or by a result, is of level info or less: by default
-- it is quiet.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"

local report = {}

--- Whatever has these methods; each is given a message and a table of fields.
---@class opero.LoggerLike
---@field debug fun(self, message: string, fields: table)
---@field info fun(self, message: string, fields: table)
---@field warning fun(self, message: string, fields: table)
---@field error fun(self, message: string, fields: table)
---@field enabled (fun(self, level: string): boolean)? says that a record would come to nothing

---@class opero.Report
---@field enabled fun(level: opero.Level): boolean whether it is worth while to gather fields
---@field tell fun(level: opero.Level, message: string, fields: table)

local function index(object, key)
  return object[key]
end

local function method_of(object, name)
  local ok, method = pcall(index, object, name)
  return ok and check.is_callable(method) and method or nil
end

--- The option `logger`.
---@type opero.check.Field
report.field = {
  check = function(value, path)
    for _, level in ipairs { "debug", "info", "warning", "error" } do
      if not method_of(value, level) then
        check.fail(path, value, "an object with the methods debug, info, warning and error")
      end
    end
    return value
  end,
}

-- A logger that fails must not make a call fail; nor may it swallow the cancellation of one.
local function carefully(fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then
    return result
  elseif core.is_cancelled(result) then
    core.reraise(result)
  end
  warn("opero: the logger failed: ", errors.summary(result))
  return false
end

--- What reports to the logger.
---@param logger opero.LoggerLike
---@return opero.Report
function report.to(logger)
  local methods, enabled = {}, method_of(logger, "enabled")
  for _, level in ipairs { "debug", "info", "warning", "error" } do
    methods[level] = function(message, fields)
      logger[level](logger, message, fields)
    end
  end
  return {
    enabled = function(level)
      return not enabled or carefully(enabled, logger, level)
    end,
    tell = function(level, message, fields)
      carefully(methods[level], message, fields)
    end,
  }
end

local opero = core.logger("opero")

--- Reports to the library's own logger.
---@type opero.Report
report.default = {
  enabled = function(level)
    return opero:enabled(level)
  end,
  tell = function(level, message, fields)
    opero[level](opero, message, fields)
  end,
}

return report
