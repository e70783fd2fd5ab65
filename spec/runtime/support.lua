--- What the specs of the runtime share.

local errors = require "opero.errors"
local opero = require "opero"
local shared = require "spec.support"

local support = { raised = shared.raised, simulated = shared.simulated }

--- A value that calls fn(err) when the `<close>` variable it is in goes out of scope.
function support.closing(fn)
  return setmetatable({}, {
    __close = function(_, err)
      fn(err)
    end,
  })
end

--- The error fn raises, which must be of the class of this name.
function support.raised_class(class_name, fn, ...)
  local err = shared.raised(fn, ...)
  if not errors.is(err, errors[class_name]) then
    error(("expected a %s, got %s"):format(class_name, tostring(err)), 2)
  end
  return err
end

function support.is_cancellation(err)
  return errors.is(err, errors.CancelledError)
end

--- A test that runs as a task in real time.
function support.in_real_time(fn)
  return function()
    opero.run(fn)
  end
end

--- In a simulation: lets all others run until nothing is ready any more, for only then time passes.
function support.settle()
  opero.sleep(1e-6)
end

-- ---- programs of their own -----------------------------------------------------------------

local function interpreter()
  local first = 0
  while arg[first - 1] do
    first = first - 1
  end
  return arg[first]
end

local function contents(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

---@class spec.Outcome
---@field code integer its exit status, or 128 and the number of the signal that ended it
---@field out string its standard output
---@field err string its standard error

--- Runs a Lua program in an interpreter of its own, as `lua5.4 script.lua` would.
---@param source string
---@param prefix string? a command to run it with
---@return spec.Outcome
function support.run_program(source, prefix)
  local script, out, err = os.tmpname(), os.tmpname(), os.tmpname()
  local _ <close> = support.closing(function()
    os.remove(script)
    os.remove(out)
    os.remove(err)
  end)
  do
    local file <close> = assert(io.open(script, "w"))
    file:write(source)
  end
  local _, how, code = os.execute(("%s timeout -k 1 60 %s %s >%s 2>%s </dev/null"):format(
    prefix or "", interpreter(), script, out, err))
  return {
    code = how == "signal" and code + 128 or code,
    out = contents(out),
    err = contents(err),
  }
end

--- The same for a program that must end well and quietly; returns what it printed.
function support.output_of(source)
  local outcome = support.run_program(source)
  if outcome.code ~= 0 or outcome.err ~= "" then
    error(("the program ended with %d and said:\n%s%s"):format(
      outcome.code, outcome.out, outcome.err), 2)
  end
  return outcome.out
end

return support
