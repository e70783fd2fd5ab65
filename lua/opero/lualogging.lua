--- A bridge to lualogging, each way. It is not loaded with the library, nor does it need
--- lualogging: it knows its interface alone.

local check = require "opero.check"
local core = require "opero.core"

local lualogging = {}

local TO_THEIRS <const> = {
  debug = "DEBUG", info = "INFO", warning = "WARN", error = "ERROR", critical = "FATAL",
}
local TO_OURS <const> = {
  DEBUG = "debug", INFO = "info", WARN = "warning", ERROR = "error", FATAL = "critical",
  OFF = "off",
}

--- A sink for configure_logging that hands its lines, without time and level, to a logger of
--- lualogging, and so to its appender.
--- Raises ConfigError.
---@param logger table as logging.new and the appenders make it
---@return opero.LogSink
function lualogging.sink(logger)
  if type(logger) ~= "table" or not check.is_callable(logger.log) then
    check.fail("lualogging.sink.logger", logger, "a logger of lualogging")
  end
  return {
    format = "plain",
    output = function(line, record)
      local ok, err = logger:log(TO_THEIRS[record.level], line)
      if ok == nil and err ~= nil then
        error(err, 0)
      end
    end,
  }
end

---@class opero.LuaLogger our logger with the methods of lualogging's
---@field debug fun(self, message: any, ...: any)
---@field info fun(self, message: any, ...: any)
---@field warn fun(self, message: any, ...: any)
---@field error fun(self, message: any, ...: any)
---@field fatal fun(self, message: any, ...: any)
local methods = {}

local function theirs(level, path)
  return TO_OURS[level] or check.fail(path, level, "a level of lualogging, such as DEBUG or WARN")
end

local function log(logger, level, message, ...)
  if not logger:enabled(level) then
    return true
  elseif type(message) == "function" then -- it makes the message, when that is wanted
    message = message(...)
    logger:log(level, "%s", message)
  elseif select("#", ...) == 0 then
    logger:log(level, "%s", message)
  else
    logger:log(level, message, ...)
  end
  return true
end

for level, name in pairs(TO_THEIRS) do
  methods[name:lower()] = function(self, message, ...)
    return log(self.logger, level, message, ...)
  end
end

--- Logs at a level by its name there: "DEBUG", "INFO", "WARN", "ERROR" or "FATAL".
---@param level string
---@param message any
---@param ... any
---@return true
function methods:log(level, message, ...)
  level = theirs(level, "log.level")
  return level == "off" or log(self.logger, level, message, ...)
end

--- Sets the level of the logger.
---@param level string
function methods:setLevel(level)
  self.logger:set_level(theirs(level, "setLevel.level"))
end

local mt = { __index = methods, __name = "opero.LuaLogger" }

--- Our logger, where code expects one of lualogging.
--- Raises ConfigError.
---@param logger opero.Logger
---@return opero.LuaLogger
function lualogging.logger(logger)
  if not core.is_logger(logger) then
    check.fail("lualogging.logger.logger", logger, "a logger, of get_logger or ContextAdapter")
  end
  return setmetatable({ logger = logger }, mt)
end

for name in pairs(TO_OURS) do
  methods[name] = name -- code reads the levels off the logger: logger:setLevel(logger.WARN)
end

return lualogging
