--- Logging with context: what the C part (csrc/log.h) has, with its arguments checked.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"

---@alias opero.Level "debug"|"info"|"warning"|"error"|"critical"

local logging = {}

local LEVELS <const> = { "debug", "info", "warning", "error", "critical", "off" }
local LONGEST_NAME <const> = 1000
local FORMATS <const> = { "text", "plain", "logfmt", "json" }
local FACILITIES <const> = {
  "auth", "authpriv", "cron", "daemon", "ftp", "kern", "local0", "local1", "local2", "local3",
  "local4", "local5", "local6", "local7", "lpr", "mail", "news", "syslog", "user", "uucp",
}

-- ---- names, levels, fields -------------------------------------------------------------------

local function check_name(name, path)
  if type(name) ~= "string" or name == "" or name:find("^%.") or name:find("%.%.")
    or name:find("%.$") or name:find("%c") or #name > LONGEST_NAME then
    check.fail(path, name, "a name, or names with dots between them, of 1000 bytes at most")
  end
  return name
end

local level_field = { type = "enum", values = LEVELS }

local function check_level(level, path)
  for _, known in ipairs(LEVELS) do
    if level == known then
      return level
    end
  end
  return check.fail(path, level, ('one of "%s"'):format(table.concat(LEVELS, '", "')))
end

local function check_fields(fields, path)
  if type(fields) ~= "table" then
    check.fail(path, fields, "a table of fields")
  end
  for name in next, fields do
    if type(name) ~= "string" then
      check.fail(check.join(path, name), fields[name], "nothing: the names of fields are strings")
    end
  end
  return fields
end

local function check_logger(logger, path)
  if not core.is_logger(logger) then
    check.fail(path, logger, "a logger, of get_logger or ContextAdapter")
  end
  return logger
end

-- ---- loggers ---------------------------------------------------------------------------------

---@class opero.LoggerOptions
---@field level opero.Level|"off"|nil the least that it lets through; default: as before, which is
---  the level of the nearest logger above it that has one

local logger_options = { fields = { level = level_field } }

local loggers = {} -- by their names; like what they are faces of, they stay

local function logger_of(name)
  local logger = loggers[name]
  if not logger then
    logger = core.logger(name)
    loggers[name] = logger
  end
  return logger
end

--- The logger of that name. There is one to a name: "my_app.db" is below "my_app", and has its
--- level unless it is given one of its own. All are below the root.
--- Raises ConfigError.
---@param name string? names with dots between them; default: the root
---@param options opero.LoggerOptions?
---@return opero.Logger
function logging.get_logger(name, options)
  options = check.options(logger_options, options == nil and {} or options, "get_logger")
  local logger = logger_of(name == nil and "" or check_name(name, "get_logger.name"))
  if options.level then
    logger:set_level(options.level)
  end
  return logger
end

--- A logger with fields of its own in all its records, beside those of the context.
--- Raises ConfigError.
---@param logger opero.Logger
---@param fields table<string, any>? as they are now
---@return opero.Logger
function logging.ContextAdapter(logger, fields)
  return core.adapter(check_logger(logger, "ContextAdapter.logger"),
    fields ~= nil and check_fields(fields, "ContextAdapter.fields") or nil)
end

local methods = core.logger_methods

function methods.add_context(_, fields)
  core.add_context(check_fields(fields, "add_context.fields"))
end

function methods.remove_context(_, ...)
  for i = 1, select("#", ...) do
    local name = select(i, ...)
    if type(name) ~= "string" then
      check.fail(("remove_context[%d]"):format(i), name, "the name of a field")
    end
  end
  core.remove_context(...)
end

function methods.context()
  return core.get_context()
end

local function call_within(scope, fn, ...)
  local _ <close> = scope
  return fn(...)
end

--- Adds fields to the context of the current task for a while: as long as fn runs, or until the
--- value returned is closed, `local _ <close> = log_context(log, fields)`. Then the named fields
--- have the values they had before; other changes stay.
--- Raises ConfigError, and the errors of fn.
---@param logger opero.Logger
---@param fields table<string, any> as they are now
---@param fn function? called with the further arguments
---@param ... any
---@return any ... what fn returns; without it what is to be closed
function logging.log_context(logger, fields, fn, ...)
  check_logger(logger, "log_context.logger")
  check_fields(fields, "log_context.fields")
  if fn == nil then
    return core.push_context(fields)
  end
  check.callable(fn, "log_context.fn")
  return call_within(core.push_context(fields), fn, ...)
end

-- ---- outputs ---------------------------------------------------------------------------------

---@class opero.SyslogOptions
---@field ident string? what the records are marked with; default "opero"
---@field facility string? "user" (default), "daemon", "local0" and so on

local syslog_options = {
  fields = {
    ident = {
      check = function(value, path)
        if type(value) ~= "string" or value == "" or value:find("%z") then
          check.fail(path, value, "a name")
        end
        return value
      end,
      default = "opero",
    },
    facility = { type = "enum", values = FACILITIES, default = "user" },
  },
}

---@alias opero.LogOutput
---| "stderr"
---| "stdout"
---| "syslog"
---| { file: string }
---| { syslog: opero.SyslogOptions }
---| fun(line: string, record: opero.LogRecord)

--- What a function is given beside the line.
---@class opero.LogRecord
---@field time number seconds since 1970
---@field level opero.Level
---@field logger string
---@field message string
---@field pid integer? of the worker it comes from
---@field fields table<string, any> those of the context and of the record, masked as they are in
---  lines; tables in them are copies

local STANDARD <const> = { stderr = 2, stdout = 1 }
local EXPECTED <const> = 'one of "stderr", "stdout", "syslog"; { file = path }, '
  .. "{ syslog = {...} } or a function"

local function check_output(value, path)
  if STANDARD[value] or value == "syslog" or check.is_callable(value) then
    return value
  elseif type(value) ~= "table" then
    check.fail(path, value, EXPECTED)
  end
  local kind, options = next(value)
  if kind == nil or next(value, kind) ~= nil or kind ~= "file" and kind ~= "syslog" then
    check.fail(path, value, EXPECTED)
  elseif kind == "file" then
    if type(options) ~= "string" or options == "" or options:find("%z") then
      check.fail(check.join(path, "file"), options, "the path of a file")
    end
    return { file = options }
  end
  return { syslog = check.options(syslog_options, options, check.join(path, "syslog")) }
end

-- A function that hands lines to the system's log. There is one such log to a process: of several
-- outputs the last one's options are in force. The second function opens it: not before all outputs
-- are known to be in order.
local function to_syslog(options)
  local ok, syslog = pcall(require, "posix.syslog")
  if not ok then
    error(errors.ConfigError("configure_logging: syslog needs luaposix: " .. errors.summary(syslog),
      { path = "configure_logging" }))
  end
  local priorities = {
    debug = syslog.LOG_DEBUG, info = syslog.LOG_INFO, warning = syslog.LOG_WARNING,
    error = syslog.LOG_ERR, critical = syslog.LOG_CRIT,
  }
  return function(line, record)
    syslog.syslog(priorities[record.level], line)
  end, function()
    syslog.openlog(options.ident, syslog.LOG_PID, syslog["LOG_" .. options.facility:upper()])
  end
end

-- What log_configure takes, of a sink that was checked.
local function output_of(sink)
  local output, format = sink.output, sink.format
  local result = { level = sink.level or "debug", format = format or "text" }
  if output == "syslog" then
    output = { syslog = check.options(syslog_options, {}, "syslog") }
  end
  if STANDARD[output] then
    result.fd = STANDARD[output]
  elseif check.is_callable(output) then
    result.fn = output
  elseif output.file then
    result.path = output.file
  else
    result.fn, result.open = to_syslog(output.syslog)
    result.format = format or "plain"
  end
  return result
end

-- ---- configuring -----------------------------------------------------------------------------

---@class opero.LogSink
---@field output opero.LogOutput
---@field level opero.Level|"off"|nil the least that goes there; default "debug"
---@field format "text"|"plain"|"logfmt"|"json"|nil default: that of the configuration

---@class opero.LoggingConfig
---@field level opero.Level|"off"|nil of the root, and so of all loggers without one of their own;
---  default: as it is, which is "info", for the logger "opero" "warning", until it is set
---@field levels table<string, opero.Level|"off">? levels of loggers by their names; default: as
---  they are
---@field format "text"|"plain"|"logfmt"|"json"|nil default "text", for syslog "plain"
---@field output opero.LogOutput? where records go; default "stderr"
---@field sinks opero.LogSink[]? several at once, in place of output
---@field redact string[]? names of fields whose values are masked, at any depth, in upper or lower
---  case; default: none

local format_field = { type = "enum", values = FORMATS }

local sink_options = {
  fields = {
    output = { check = check_output, required = true },
    level = level_field,
    format = format_field,
  },
}

local function check_list(value, path, check_element)
  if type(value) ~= "table" then
    check.fail(path, value, "a list")
  end
  local list = {}
  for i = 1, check.last_index(value, path) do
    list[i] = check_element(value[i], check.join(path, i))
  end
  return list
end

---@type opero.check.Spec
logging.options = {
  fields = {
    level = level_field,
    levels = {
      check = function(value, path)
        if type(value) ~= "table" then
          check.fail(path, value, "a table of levels by the names of loggers")
        end
        local levels = {}
        for name, level in next, value do
          check_name(name, path)
          levels[name] = check_level(level, check.join(path, name))
        end
        return levels
      end,
    },
    format = format_field,
    output = { check = check_output },
    sinks = {
      check = function(value, path)
        return check_list(value, path, function(sink, at)
          return check.options(sink_options, sink, at)
        end)
      end,
    },
    redact = {
      check = function(value, path)
        return check_list(value, path, function(name, at)
          if type(name) ~= "string" or name == "" then
            check.fail(at, name, "the name of a field")
          end
          return name
        end)
      end,
    },
  },
  verify = function(options, path)
    if options.sinks and options.output ~= nil then
      check.fail(check.join(path, "output"), options.output, "nothing beside sinks")
    end
  end,
}

--- Says where records go and which. Where they went before they go no longer: each call says all
--- there is to say but for levels, which stay until they are set again.
--- Raises ConfigError, also when a file cannot be opened; then all is as before.
---@param given opero.LoggingConfig?
---@return opero.Logger root
function logging.configure(given)
  local options = check.options(logging.options, given == nil and {} or given, "configure_logging")
  local outputs = {}
  for i, sink in ipairs(options.sinks or { { output = options.output or "stderr" } }) do
    outputs[i] = output_of {
      output = sink.output, level = sink.level, format = sink.format or options.format,
    }
  end
  local ok, err = pcall(core.log_configure, outputs, options.redact or {})
  if not ok then
    if type(err) ~= "string" then
      core.reraise(err)
    end
    error(errors.ConfigError("configure_logging: " .. err, { path = "configure_logging" }))
  end
  for _, output in ipairs(outputs) do
    if output.open then
      output.open()
    end
  end
  local root = logger_of ""
  if options.level then
    root:set_level(options.level)
  end
  for name, level in next, options.levels or {} do
    logger_of(name):set_level(level)
  end
  return root
end

--- Opens the log files anew by their names, after those have been moved away (log rotation).
---@return true? ok nil when one could not be opened: that goes on as it was
---@return string? reason
function logging.reopen()
  local failures = core.log_reopen()
  if #failures == 0 then
    return true
  end
  local said = {}
  for i, failure in ipairs(failures) do
    said[i] = ("%s: %s"):format(failure[1], failure[2])
  end
  return nil, table.concat(said, "; ")
end

return logging
