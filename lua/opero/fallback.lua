--- Fallback: calls other functions in turn when one has failed.

local check = require "opero.check"
local core = require "opero.core"
local outcome = require "opero.outcome"
local report = require "opero.report"

local fallback = {}

--- The option `fallbacks`: a function or a list of them, tried in this order with the arguments of
--- the call.
---@type opero.check.Field
fallback.field = { check = check.callables }

--- Wraps a layer; each of the functions goes through it. Without any there is nothing to wrap.
---@param functions function[]
---@param next_layer opero.Layer
---@param told opero.Report? default: the logger "opero" is told
---@return opero.Layer
function fallback.layer(functions, next_layer, told)
  told = told or report.default
  if #functions == 0 then
    return next_layer
  end
  return core.guard(next_layer, function(err, _, ...)
    local failures = { n = 1, err }
    for i, fn in ipairs(functions) do
      if outcome.is_final(err) then
        return false, err
      end
      if told.enabled("info") then
        told.tell("info", "function failed, will fall back", { fallback = i, error = err })
      end
      local results
      results, err = outcome.keep(next_layer(fn, ...))
      if results then
        return outcome.of(results)
      end
      failures.n = i + 1
      failures[i + 1] = err
    end
    if outcome.is_final(err) then
      return false, err
    end
    if told.enabled("info") then
      told.tell("info", "all fallbacks failed", { functions = failures.n, error = err })
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
    layer = fallback.layer(functions, core.invoke),
  }, chain_mt)
end

return fallback
