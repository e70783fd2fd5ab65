--- Fallback: calls other functions in turn when one has failed, or the same one with another
-- argument.

local check = require "opero.check"
local core = require "opero.core"
local events = require "opero.events"
local matcher = require "opero.matcher"
local outcome = require "opero.outcome"

local fallback = {}

--- The option `fallbacks`: a function or a list of them, tried in this order with the arguments of
--- the call.
---@type opero.check.Field
fallback.field = { check = check.callables }

--- The option `fallback_on`: which errors the fallbacks are for.
---@type opero.check.Field
fallback.matcher_field = { check = matcher.compile }

---@class opero.ArgFallback
---@field position integer? which argument is replaced, from 1; default 1
---@field values any[] in its place, in turn; with an n there may be nils among them

local function check_values(value, path)
  if type(value) ~= "table" then
    check.fail(path, value, "a list of values that is not empty")
  end
  local values, n = {}, value.n
  for key, element in next, value do
    if key ~= "n" then
      values[key] = element
    end
  end
  local last = check.last_index(values, path)
  if n ~= nil and (math.type(n) ~= "integer" or n < last) then
    check.fail(check.join(path, "n"), n, ("an integer >= %d, the last index"):format(last))
  end
  values.n = n or last
  if values.n == 0 then
    check.fail(path, value, "a list of values that is not empty")
  end
  return values
end

--- The option `arg_fallback`: the function is called again with other values of one argument.
---@type opero.check.Field
fallback.arg_field = {
  type = "options",
  options = {
    fields = {
      position = { type = "integer", min = 1, max = 200, default = 1 },
      values = { check = check_values, required = true },
    },
  },
}

---@class opero.Value what opero.value makes: a fallback
---@overload fun(...: any): any ...
local value_mt = {
  __name = "opero.Value",
  __call = function(self)
    return table.unpack(self, 1, self.n)
  end,
}

--- A fallback that has these results, whatever it is called with.
---@param ... any
---@return opero.Value
function fallback.value(...)
  return setmetatable(table.pack(...), value_mt)
end

-- The arguments with another value at one place.
local function replaced(position, value, ...)
  local arguments = table.pack(...)
  arguments[position] = value
  return table.unpack(arguments, 1, math.max(arguments.n, position))
end

---@class opero.fallback.Config
---@field functions function[]?
---@field matches (fun(err: any): any)?
---@field arguments opero.ArgFallback?

--- Wraps a layer; each of the functions, and of the further calls, goes through it. Without any
--- there is nothing to wrap.
---@param config opero.fallback.Config
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@param others opero.Layer? what the functions pass in place of next_layer
---@return opero.Layer
function fallback.layer(config, next_layer, told, others)
  others = others or next_layer
  told = told or events.default
  local functions, arguments = config.functions or {}, config.arguments
  local matches = config.matches or matcher.any
  if #functions == 0 and not arguments then
    return next_layer
  end

  -- Tries what one step offers; nil when it has failed too, which is noted.
  local function try(failures, step, layer, fn, ...)
    local err = failures[failures.n]
    if told:note("fallback") then
      told:tell("fallback", { fallback = step, error = err })
    end
    local results, failure = outcome.keep(layer(fn, ...))
    if results then
      return results
    end
    failures.n = failures.n + 1
    failures[failures.n] = failure
    return nil
  end

  local function goes_on(failures)
    local err = failures[failures.n]
    return not outcome.is_final(err) and matches(err)
  end

  return core.guard(next_layer, function(err, fn, ...)
    local failures, step = { n = 1, err }, 0
    for i = 1, arguments and arguments.values.n or 0 do
      if not goes_on(failures) then
        return false, failures[failures.n]
      end
      step = step + 1
      local results = try(failures, step, next_layer, fn,
        replaced(arguments.position, arguments.values[i], ...))
      if results then
        return outcome.of(results)
      end
    end
    for _, other in ipairs(functions) do
      if not goes_on(failures) then
        return false, failures[failures.n]
      end
      step = step + 1
      if getmetatable(other) == value_mt then -- no policy has anything to do with it
        if told:note("fallback") then
          told:tell("fallback", { fallback = step, error = failures[failures.n] })
        end
        return true, other()
      end
      local results = try(failures, step, others, other, ...)
      if results then
        return outcome.of(results)
      end
    end
    if outcome.is_final(failures[failures.n]) then
      return false, failures[failures.n]
    end
    if told:note("fallbacks_exhausted") then
      told:tell("fallbacks_exhausted", { functions = failures.n, error = failures[failures.n] })
    end
    return false, outcome.all_failed(failures)
  end)
end

---@class opero.FallbackChain
---@overload fun(...: any): any ...
local chain_methods = {}

--- Calls the primary, and while it fails the fallbacks in turn. Returns the results of the first
--- that succeeds. Raises AllFailedError when all have failed; without fallbacks the primary's
--- error, unchanged.
---@param ... any the arguments of every function
---@return any ...
function chain_methods:execute(...)
  return outcome.raise(self.layer(self.primary, ...))
end

--- Is there a function beside the primary?
---@return boolean
function chain_methods:has_fallbacks()
  return self.count > 0
end

local chain_mt = {
  __name = "opero.FallbackChain",
  __index = chain_methods,
  __call = chain_methods.execute,
}

--- A function with fallbacks, without any other policy. Raises ConfigError.
---@param primary function
---@param fallbacks function|function[]? tried in this order when the primary fails
---@return opero.FallbackChain
function fallback.chain(primary, fallbacks)
  check.callable(primary, "FallbackChain.primary")
  local functions = fallbacks == nil and {}
    or check.callables(fallbacks, "FallbackChain.fallbacks")
  return setmetatable({
    primary = primary,
    count = #functions,
    layer = fallback.layer({ functions = functions }, core.invoke),
  }, chain_mt)
end

return fallback
