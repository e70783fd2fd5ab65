--- Error objects with a class.
--
-- Any Lua value may be raised through Opero; these are the ones it raises itself, and the ground on
-- which users derive their own.

---@class opero.Error
---@field message string what went wrong
---@field traceback string? where the error was made (none for cancellations, they are too frequent)
---@field cause any the error that led to this one
---@field name string the name of its class
---@field parent opero.ErrorClass?
---@field [string] any the fields given to the constructor

---@class opero.ErrorClass
---@field name string
---@field parent opero.ErrorClass? nil for OperoError alone
---@overload fun(message: string, fields: table?): opero.Error

local core = require "opero.core"

---@class opero.errors
local errors = {}

-- Deeper chains are cut: a message is for reading.
local MAX_CAUSES <const> = 16

-- Every class, with its parent (false for the root). Weak: a class made in a loop may go.
local parents = setmetatable({}, { __mode = "k" })

local function safe_tostring(value)
  local ok, text = pcall(tostring, value)
  if ok then
    return text
  end
  return ("(a %s that cannot be shown)"):format(type(value))
end

--- Is it an object of one of the classes made here?
local function is_object(value)
  return type(value) == "table" and parents[getmetatable(value)] ~= nil
end

local function headline(object)
  return ("%s: %s"):format(object.__name, safe_tostring(object.message))
end

local function to_text(object)
  local lines, seen = { headline(object) }, { [object] = true }
  local cause = object.cause
  while cause ~= nil do
    if seen[cause] then
      lines[#lines + 1] = "caused by: the same error again"
      break
    elseif #lines > MAX_CAUSES then
      lines[#lines + 1] = "caused by: ..."
      break
    end
    seen[cause] = true
    -- A class with a __tostring of its own says all there is to say, its causes included.
    if is_object(cause) and getmetatable(cause).__tostring == to_text then
      lines[#lines + 1] = "caused by: " .. headline(cause)
      cause = cause.cause
    else
      lines[#lines + 1] = "caused by: " .. safe_tostring(cause)
      cause = nil
    end
  end
  return table.concat(lines, "\n")
end

local function construct(class, message, fields)
  if type(message) ~= "string" then
    error(("%s: the message must be a string, got %s"):format(class.name, type(message)), 2)
  elseif fields ~= nil and type(fields) ~= "table" then
    error(("%s: the fields must be a table, got %s"):format(class.name, type(fields)), 2)
  end
  local object = {}
  for key, value in next, fields or object do
    object[key] = value
  end
  object.message = message
  if object.traceback == nil and not class.untraced then
    object.traceback = debug.traceback(nil, 2)
  end
  return setmetatable(object, class)
end

local class_mt = {
  __name = "opero.ErrorClass",
  __index = function(class, key)
    local parent = parents[class]
    if parent then
      return parent[key]
    end
  end,
  __call = construct,
  __tostring = function(class)
    return "error class " .. class.name
  end,
}

local function new_class(name, parent)
  local class = { name = name, parent = parent, __name = name }
  class.__index = class
  -- Metamethods are looked up raw in a metatable, so a child takes its parent's along.
  class.__tostring = parent and parent.__tostring or to_text
  parents[class] = parent or false
  return setmetatable(class, class_mt)
end

-- Errors travel between processes. One whose class is not known here gets a class to stand in.
core.set_class_maker(function(name, parent)
  if parents[parent] == nil then
    error(("the parent of %s is no error class"):format(name), 0)
  end
  return new_class(name, parent)
end)

--- Makes a class of errors. Its instances find the class's methods and fields, its parents' too.
---@param name string
---@param parent opero.ErrorClass? default: OperoError
---@return opero.ErrorClass class call it, `Class("message", { cause = e, retry_after = 2 })`,
---  for an object to raise
function errors.class(name, parent)
  if type(name) ~= "string" or name == "" then
    error("errors.class: the name must be a string that is not empty, got " .. type(name), 2)
  end
  if parent == nil then
    parent = errors.OperoError
  elseif parents[parent] == nil then
    error(("errors.class: the parent of %s must be an error class, got %s")
      :format(name, type(parent)), 2)
  end
  local class = new_class(name, parent)
  core.register_class(name, class, parent)
  return class
end

--- Is `value` an error class?
---@param value any
---@return boolean
function errors.is_class(value)
  return value ~= nil and parents[value] ~= nil
end

--- Is `e` an error of this class, or of one derived from it? False for any other value.
---@param e any
---@param class opero.ErrorClass
---@return boolean
function errors.is(e, class)
  if not errors.is_class(class) then
    error("errors.is: expected an error class as second argument, got " .. type(class), 2)
  end
  if type(e) ~= "table" then
    return false
  end
  local candidate = getmetatable(e)
  while candidate do
    if rawequal(candidate, class) then
      return true
    end
    candidate = parents[candidate]
  end
  return false
end

--- What an error of any type says, in one line; never raises.
---@param e any
---@return string
function errors.summary(e)
  local text = is_object(e) and safe_tostring(e.message) or safe_tostring(e)
  return text:match("^[^\r\n]*")
end

--- The base of all classes.
---@type opero.ErrorClass
errors.OperoError = errors.class("OperoError")

--- An option or an argument was refused. Fields: path, value, allowed (a text).
---@type opero.ErrorClass
errors.ConfigError = errors.class("ConfigError")

--- All attempts failed (`reraise = false`). Fields: attempts, cause (the last error).
---@type opero.ErrorClass
errors.RetryError = errors.class("RetryError")

--- A function and all its fallbacks failed. Fields: errors (a list with n, in order), cause (the
--- last of them).
---@type opero.ErrorClass
errors.AllFailedError = errors.class("AllFailedError")

--- Something took longer than it was given.
---@type opero.ErrorClass
errors.TimeoutError = errors.class("TimeoutError")

--- Raised where a task is suspended to end it. No policy retries it or falls back from it.
---@type opero.ErrorClass
errors.CancelledError = errors.class("CancelledError")
errors.CancelledError.untraced = true

--- A circuit breaker let nothing through. Fields: retry_after (seconds).
---@type opero.ErrorClass
errors.CircuitOpenError = errors.class("CircuitOpenError")

--- A queue had no room.
---@type opero.ErrorClass
errors.QueueFullError = errors.class("QueueFullError")

--- A rate limit let nothing through. Fields: retry_after (seconds), key.
---@type opero.ErrorClass
errors.RateLimitError = errors.class("RateLimitError")

--- A worker process died.
---@type opero.ErrorClass
errors.WorkerCrashedError = errors.class("WorkerCrashedError")

--- A value cannot travel between processes.
---@type opero.ErrorClass
errors.SerializationError = errors.class("SerializationError")

--- Tasks wait for what can never come.
---@type opero.ErrorClass
errors.DeadlockError = errors.class("DeadlockError")

--- Several tasks failed and nobody awaited them. Fields: errors (a list).
---@type opero.ErrorClass
errors.AggregateError = errors.class("AggregateError")

--- A thing was used after it had been closed.
---@type opero.ErrorClass
errors.ClosedError = errors.class("ClosedError")

--- An item of process, map or imap failed. Fields: index, item, cause (its error, unchanged);
-- of process also function_index and item_index.
---@type opero.ErrorClass
errors.ItemError = errors.class("ItemError")

--- Makes an error by its class's name: how the C core raises the classes above.
---@param class_name string
---@param message string
---@param fields table?
---@return opero.Error
function errors.make(class_name, message, fields)
  local class = errors[class_name]
  if not errors.is_class(class) then
    error("errors.make: there is no class " .. safe_tostring(class_name), 2)
  end
  return class(message, fields)
end

return errors
