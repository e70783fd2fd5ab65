-- What fallbacks have beside a list of functions, for which see spec/fallback_spec.lua.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, raised, refused = support.broken, support.raised, support.refused
local simulated = support.simulated

local Refused = errors.class("Refused")

local function echo(...) return ... end

local function refused_path(config)
  return refused(opero.Orchestrator, config).path
end

describe("fallback_on", function()
  it("says which errors the fallbacks are for; others come out unchanged", simulated(function()
    local orch = opero.Orchestrator { fallbacks = echo, fallback_on = { Refused, "^timeout" } }
    assert.equal(1, orch:execute((broken(Refused "x")), 1))
    assert.equal(2, orch:execute((broken "timeout"), 2))
    for _, err in ipairs { "a timeout", errors.OperoError "x", 5, false } do
      assert.equal(err, raised(orch.execute, orch, (broken(err))))
    end
    assert.is_nil(raised(orch.execute, orch, (broken(nil))))
  end))

  it("is asked again for the error of each fallback", simulated(function()
    local other, never = Refused "b", 0
    local orch = opero.Orchestrator {
      fallbacks = { (broken(other)), function() never = never + 1 end },
      fallback_on = "a",
    }
    assert.equal(other, raised(orch.execute, orch, (broken "a")))
    assert.equal(0, never)
  end))

  it("is given errors of any type", simulated(function()
    local seen = { n = 0 }
    local object = {}
    local orch = opero.Orchestrator {
      fallbacks = { (broken(false)), (broken(object)), echo },
      fallback_on = function(err)
        seen.n = seen.n + 1
        seen[seen.n] = err
        return true
      end,
    }
    assert.equal("x", orch:execute((broken(nil)), "x"))
    assert.same({ n = 3, nil, false, object }, seen)
  end))

  it("is not asked of a cancellation", simulated(function()
    local orch = opero.Orchestrator {
      fallbacks = echo, fallback_on = function() return true end,
    }
    local task = opero.spawn(orch.execute, orch, opero.sleep, 9)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("x: interrupted!", raised(orch.execute, orch, (broken "x: interrupted!")))
  end))

  it("that fails makes its error that of the call", simulated(function()
    for _, err in ipairs { "bad matcher", false, { "bad" } } do
      local orch = opero.Orchestrator {
        fallbacks = echo, fallback_on = function() error(err, 0) end,
      }
      assert.equal(err, raised(orch.execute, orch, (broken "x")))
    end
  end))

  it("is refused when it is no matcher, or there is nothing it is for", function()
    assert.equal("config.fallback_on", refused_path { fallbacks = echo, fallback_on = 5 })
    assert.equal("config.fallback_on[2]",
      refused_path { fallbacks = echo, fallback_on = { "x", {} } })
    local err = refused(opero.Orchestrator, { fallback_on = "x" })
    assert.equal("config.fallback_on: expected nothing without fallbacks or arg_fallback, for "
      .. "which it says when, got a function", err.message)
    assert.is_table(opero.Orchestrator {
      arg_fallback = { values = { 1 } }, fallback_on = "x",
    })
  end)
end)

describe("opero.value", function()
  it("is a fallback that has these results", simulated(function()
    for _, values in ipairs {
      table.pack(), table.pack(nil), table.pack(nil, "no error"), table.pack(1, nil, false, nil),
    } do
      local value = opero.value(table.unpack(values, 1, values.n))
      assert.same(values, table.pack(opero.Orchestrator { fallbacks = value }
        :execute((broken "x"), "argument")))
      assert.same(values, table.pack(opero.FallbackChain((broken "x"), { echo and value })()))
      assert.same(values, table.pack(value("argument")))
    end
  end))

  it("stands among others", simulated(function()
    local orch = opero.Orchestrator { fallbacks = { (broken "b"), opero.value(7), echo } }
    assert.equal(7, orch:execute((broken "a"), 1))
    assert.equal(1, orch:execute(echo, 1))
  end))

  it("passes through no policy", simulated(function()
    local orch = opero.Orchestrator {
      fallbacks = opero.value(7),
      rate_limit_config = { rate = 0.1 },
      chaos_config = { error_rate = 1 },
      retry_config = { max_attempts = 1 },
    }
    assert.equal(7, orch:execute(echo, 1))
    assert.equal(0, opero.now())
  end))

  it("is told of like any", simulated(function()
    local told = {}
    local orch = opero.Orchestrator {
      fallbacks = { (broken "b"), opero.value(7) },
      on = { fallback = function(e) told[#told + 1] = { e.fallback, e.error } end },
    }
    orch:execute((broken "a"))
    assert.same({ { 1, "a" }, { 2, "b" } }, told)
    assert.equal(2, orch:stats().events.fallback)
  end))
end)

describe("arg_fallback", function()
  -- Fails but for one value of its argument at this place, and the arguments it was called with.
  local function wanting(position, value)
    local calls = {}
    return function(...)
      calls[#calls + 1] = table.pack(...)
      if select(position, ...) ~= value then
        error("not " .. tostring((select(position, ...))), 0)
      end
      return ...
    end, calls
  end

  it("calls the function with each value in turn, until one succeeds", simulated(function()
    local fn, calls = wanting(2, "c")
    local orch = opero.Orchestrator {
      arg_fallback = { position = 2, values = { "b", "c", "d" } },
    }
    assert.same({ n = 4, 1, "c", nil, nil }, table.pack(orch:execute(fn, 1, "a", nil, nil)))
    assert.same({
      { n = 4, 1, "a", nil, nil }, { n = 4, 1, "b", nil, nil }, { n = 4, 1, "c", nil, nil },
    }, calls)
  end))

  it("does nothing when the function succeeds", simulated(function()
    local fn, calls = wanting(1, "a")
    assert.equal("a", opero.Orchestrator { arg_fallback = { values = { "b" } } }:execute(fn, "a"))
    assert.equal(1, #calls)
  end))

  it("replaces the first argument by default, also one that is not there", simulated(function()
    local fn, calls = wanting(1, "b")
    opero.Orchestrator { arg_fallback = { values = { "b" } } }:execute(fn)
    assert.same({ n = 1, "b" }, calls[2])
    fn, calls = wanting(3, "b")
    opero.Orchestrator { arg_fallback = { position = 3, values = { "b" } } }:execute(fn, 1, 2, 3)
    assert.same({ n = 3, 1, 2, "b" }, calls[2])
    local seen
    local orch = opero.Orchestrator { arg_fallback = { position = 4, values = { "b" } } }
    orch:execute(function(...)
      seen = table.pack(...)
      return seen.n == 4 or nil, "no"
    end, 1)
    assert.same({ n = 4, 1, nil, nil, "b" }, seen)
  end))

  it("may have nil and false among its values", simulated(function()
    local fn, calls = wanting(1, "never")
    local orch = opero.Orchestrator {
      arg_fallback = { values = { nil, false, nil, n = 3 } },
    }
    raised(orch.execute, orch, fn, "a")
    assert.same({ { n = 1, "a" }, { n = 1, nil }, { n = 1, false }, { n = 1, nil } }, calls)
  end))

  it("comes before the fallbacks, which have the call's own arguments", simulated(function()
    local fn, calls = wanting(1, "never")
    local orch = opero.Orchestrator {
      arg_fallback = { values = { "b", "c" } }, fallbacks = { (broken "d"), echo },
    }
    assert.equal("a", orch:execute(fn, "a"))
    assert.equal(3, #calls)
  end))

  it("gives each call attempts of its own", simulated(function()
    local fn, calls = wanting(1, "b")
    local orch = opero.Orchestrator {
      arg_fallback = { values = { "x", "b" } },
      retry_config = { max_attempts = 2, wait_min = 1, wait_max = 1 },
    }
    assert.equal("b", orch:execute(fn, "a"))
    assert.equal(5, #calls)
    assert.equal(2, opero.now())
  end))

  it("ends with an AllFailedError that lists the error of each call", simulated(function()
    local fn = wanting(1, "never")
    local orch = opero.Orchestrator {
      arg_fallback = { values = { "b" } }, fallbacks = { (broken(nil)) },
    }
    local err = raised(orch.execute, orch, fn, "a")
    assert.is_true(errors.is(err, errors.AllFailedError))
    assert.same({ n = 3, "not a", "not b", nil }, err.errors)
  end))

  it("is for the errors of fallback_on", simulated(function()
    local fn, calls = wanting(1, "c")
    local orch = opero.Orchestrator {
      arg_fallback = { values = { "b", "c" } }, fallback_on = "not a",
    }
    assert.equal("not b", raised(orch.execute, orch, fn, "a"))
    assert.equal(2, #calls)
  end))

  it("is cancelled with the call", simulated(function()
    local calls = 0
    local orch = opero.Orchestrator { arg_fallback = { values = { 5, 6 } }, fallbacks = echo }
    local task = opero.spawn(orch.execute, orch, function(seconds)
      calls = calls + 1
      opero.sleep(seconds)
      error "x"
    end, 1)
    opero.sleep(2)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(2, calls)
    assert.equal(2, opero.now())
  end))

  it("is numbered before the fallbacks, in events", simulated(function()
    local told = {}
    local orch = opero.Orchestrator {
      arg_fallback = { values = { "b", "c" } }, fallbacks = echo,
      on = { fallback = function(e) told[#told + 1] = { e.fallback, e.error } end },
    }
    orch:execute((wanting(1, "never")), "a")
    assert.same({ { 1, "not a" }, { 2, "not b" }, { 3, "not c" } }, told)
  end))

  it("is not changed by what becomes of the list later", simulated(function()
    local values = { "b" }
    local orch = opero.Orchestrator { arg_fallback = { values = values } }
    values[1] = "x"
    assert.equal("b", orch:execute((wanting(1, "b")), "a"))
  end))

  it("refuses wrong options", function()
    for path, given in pairs {
      ["config.arg_fallback"] = "b",
      ["config.arg_fallback.values"] = {},
      ["config.arg_fallback.position"] = { position = 0, values = { 1 } },
      ["config.arg_fallback.value"] = { value = 1, values = { 1 } },
      ["config.arg_fallback.values.x"] = { values = { 1, x = 2 } },
      ["config.arg_fallback.values.n"] = { values = { 1, 2, n = 1 } },
    } do
      assert.equal(path, refused_path { arg_fallback = given })
    end
    for _, bad in ipairs { {}, 5, "x", { n = 0 } } do
      local err = refused(opero.Orchestrator, { arg_fallback = { values = bad } })
      assert.equal("config.arg_fallback.values", err.path)
      assert.equal("a list of values that is not empty", err.allowed)
    end
    for _, bad in ipairs { -1, 1.5, "2", 0 } do
      assert.equal("config.arg_fallback.values.n",
        refused_path { arg_fallback = { values = { 1, n = bad } } })
    end
    for _, bad in ipairs { 0, 1.5, "1", 201 } do
      assert.equal("config.arg_fallback.position",
        refused_path { arg_fallback = { position = bad, values = { 1 } } })
    end
  end)

  it("makes a completed table that passes again", function()
    local config = opero.OrchestratorConfig {
      arg_fallback = { values = { 1, nil, 3, nil, n = 4 } },
    }
    assert.same({ position = 1, values = { 1, nil, 3, nil, n = 4 } }, config.arg_fallback)
    assert.same(config, opero.OrchestratorConfig(config))
  end)
end)
