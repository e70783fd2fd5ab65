--- What the specs of the policies share.

local assert = require "luassert"
local errors = require "opero.errors"
local opero = require "opero"

local support = {}

--- A test that runs as a task under a virtual clock which starts at 0.
function support.simulated(fn)
  return function()
    opero.simulate(fn)
  end
end

--- A function that fails with each of the given errors in turn, and then returns its arguments; and
--- the list of the times at which it was called.
function support.failing(...)
  local failures, times = table.pack(...), {}
  return function(...)
    times[#times + 1] = opero.now()
    if #times <= failures.n then
      error(failures[#times], 0)
    end
    return ...
  end, times
end

--- A function that always fails with this error, and the list of the times of its calls.
function support.broken(err)
  local times = {}
  return function()
    times[#times + 1] = opero.now()
    error(err, 0)
  end, times
end

--- The error that fn raises.
function support.raised(fn, ...)
  local ok, err = pcall(fn, ...)
  if ok then
    error("expected an error, and none was raised", 2)
  end
  return err
end

--- The ConfigError that fn raises.
function support.refused(fn, ...)
  local err = support.raised(fn, ...)
  if not errors.is(err, errors.ConfigError) then
    error("expected a ConfigError, got " .. tostring(err), 2)
  end
  return err
end

--- Checks that an orchestrator hands results and errors through as they are.
function support.hands_through(orch)
  local function echo(...) return ... end
  assert.same({ n = 4, 1, nil, false }, table.pack(orch:execute(echo, 1, nil, false, nil)))
  assert.same({ n = 0 }, table.pack(orch:execute(echo)))
  assert.equal(200, select("#", orch:execute(echo, table.unpack({}, 1, 200))))
  for _, err in ipairs { "text", 5, false, {} } do
    assert.equal(err, support.raised(orch.execute, orch, error, err, 0))
  end
  assert.is_nil(support.raised(orch.execute, orch, error, nil))
end

--- A logger that keeps its records: { level, message, fields }.
function support.recorder()
  local records = {}
  local function note(level)
    return function(_, message, fields)
      records[#records + 1] = { level, message, fields }
    end
  end
  return {
    debug = note "debug", info = note "info", warning = note "warning", error = note "error",
  }, records
end

return support
