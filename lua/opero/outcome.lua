--- Outcomes: how the layers of a pipeline talk to each other.
--
-- An outcome is `true, results...` or `false, err`. A layer is a function `layer(fn, ...)` that
-- returns an outcome and never raises. A policy makes one around the next one,
-- `policy.layer(config, next, told) -> layer`; the innermost is core.invoke.

local core = require "opero.core"
local errors = require "opero.errors"

---@alias opero.Layer fun(fn: function, ...: any): boolean, ...

local outcome = {}

--- Takes an outcome apart: its results, packed, or nil and its error.
---@param ok boolean
---@param ... any
---@return table? results with n
---@return any err
function outcome.keep(ok, ...)
  if ok then
    return table.pack(...)
  end
  return nil, (...)
end

--- Turns an outcome into what a caller expects: returns the results, or raises the error unchanged.
---@param ok boolean
---@param ... any
---@return any ...
function outcome.raise(ok, ...)
  if ok then
    return ...
  end
  return core.reraise((...))
end

--- Puts kept results back into an outcome.
---@param results table with n
---@return boolean ok, any ...
function outcome.of(results)
  return true, table.unpack(results, 1, results.n)
end

local function flat(ok, ...)
  if ok then
    return ...
  end
  return false, (...)
end

--- Makes a layer of a function that is one but for errors that it may raise, those of users' own
--- functions in it: they become its outcome.
---@param layer opero.Layer
---@return opero.Layer
function outcome.protected(layer)
  return function(...)
    return flat(core.invoke(layer, ...))
  end
end

local INTERRUPTED <const> = "interrupted!"

--- Is this an error that no policy may mend: a cancellation, or the user's Ctrl-C? The stand-alone
--- interpreter raises that as a text in the main chunk, wherever the program stands.
---@param err any
---@return boolean
function outcome.is_final(err)
  return core.is_cancelled(err) or errors.is(err, errors.CancelledError)
    or type(err) == "string" and err:sub(-#INTERRUPTED) == INTERRUPTED
end

--- The error for when none of several functions succeeded.
---@param failures table their errors in order, with n
---@return opero.Error
function outcome.all_failed(failures)
  local said = {}
  for i = 1, failures.n do
    said[i] = ("[%d] %s"):format(i, errors.summary(failures[i]))
  end
  return errors.AllFailedError(
    ("all %d functions failed: %s"):format(failures.n, table.concat(said, "; ")),
    {
      errors = failures,
      cause = failures[failures.n],
      traceback = core.traceback(failures[failures.n]),
    })
end

--- An error where nil would mean that there is none.
---@param err any
---@return any err not nil
function outcome.shown(err)
  if err == nil then
    return errors.OperoError("nil was raised")
  end
  return err
end

return outcome
