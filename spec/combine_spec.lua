local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, raised, refused = support.broken, support.raised, support.refused
local simulated = support.simulated

-- A function that sleeps and then returns the rest; `ended` counts how many were ended early.
local ended = 0
local function after(seconds, ...)
  local values = table.pack(...)
  return function()
    local finished = false
    local _ <close> = setmetatable({}, {
      __close = function()
        ended = ended + (finished and 0 or 1)
      end,
    })
    opero.sleep(seconds)
    finished = true
    return table.unpack(values, 1, values.n)
  end
end

local function fail_after(seconds, err)
  return function()
    opero.sleep(seconds)
    error(err, 0)
  end
end

-- Sleeps that take their time to end when they are cancelled.
local function stubborn(log)
  return function()
    local ok = pcall(opero.sleep, 100)
    opero.shield(function()
      opero.sleep(5)
      log[#log + 1] = ok
    end)
  end
end

before_each(function() ended = 0 end)

describe("all", function()
  it("returns the first result of each, in order, with n", simulated(function()
    assert.same({ n = 4, "a", nil, false, 4 }, opero.all {
      after(3, "a", "more"), after(1), after(2, false), function() return 4 end,
    })
    assert.equal(3, opero.now())
  end))

  it("returns at once for no entries", simulated(function()
    assert.same({ n = 0 }, opero.all {})
    assert.equal(0, opero.now())
  end))

  it("takes tasks, ended ones too, and things that can be called", simulated(function()
    local done = opero.spawn(function() return "done" end)
    local running = opero.spawn(after(2, "ran"))
    opero.sleep(1)
    local object = setmetatable({}, { __call = function() return "called" end })
    assert.same({ n = 4, "done", "ran", "called", "ran" },
      opero.all { done, running, object, running })
    assert.equal(2, opero.now())
  end))

  it("raises the first failure unchanged and cancels the rest", simulated(function()
    for _, err in ipairs { "x", { "table" }, false } do
      local start = opero.now()
      ended = 0
      local task = opero.spawn(after(100))
      assert.equal(err, raised(opero.all, {
        after(50), fail_after(2, err), task, fail_after(3, "later"),
      }))
      assert.equal(start + 2, opero.now())
      assert.equal(2, ended)
      assert.equal("cancelled", task:status())
      assert.equal(1, #opero.tasks())
    end
  end))

  it("raises the failure of a task", simulated(function()
    local task = opero.spawn(fail_after(1, "x"))
    assert.equal("x", raised(opero.all, { after(50), task }))
    assert.equal(1, ended)
  end))

  it("takes nil and an error for a failure", simulated(function()
    assert.equal("why", raised(opero.all, { after(5), after(1, nil, "why") }))
    assert.equal("why", raised(opero.all, { opero.spawn(after(1, nil, "why")) }))
  end))

  it("raises one of several that fail at the same time", simulated(function()
    assert.equal("a", raised(opero.all, { fail_after(1, "a"), fail_after(1, "b") }))
    assert.equal("a", raised(opero.all, { (broken "a"), (broken "b"), after(1) }))
    assert.equal("a", raised(opero.all, {
      fail_after(1, "a"),
      function()
        pcall(opero.sleep, 100)
        error "in cleanup"
      end,
    }))
  end))

  it("waits until those it cancelled have ended, given tasks too", simulated(function()
    local log = {}
    local task = opero.spawn(stubborn(log))
    raised(opero.all, { stubborn(log), task, fail_after(1, "x") })
    assert.same({ false, false }, log)
    assert.equal(1, #opero.tasks())
  end))

  it("fails when an entry was cancelled by somebody else", simulated(function()
    local task = opero.spawn(opero.sleep, 100)
    opero.spawn(function()
      opero.sleep(1)
      task:cancel()
    end)
    assert.is_true(errors.is(raised(opero.all, { after(50), task }), errors.CancelledError))
    assert.equal(1, opero.now())
    opero.sleep(1) -- this task itself was not
  end))

  it("is cancelled with its caller, all entries included", simulated(function()
    local inner = opero.spawn(after(100))
    local task = opero.spawn(opero.all, { after(100), inner, after(100) })
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("cancelled", task:status())
    assert.equal("cancelled", inner:status())
    assert.equal(3, ended)
    assert.equal(1, opero.now())
  end))

  it("reports what a task spawned by an entry and left alone failed with", simulated(function()
    assert.equal("child", raised(opero.all, {
      function()
        opero.spawn(fail_after(1, "child"))
        return 1
      end,
    }))
  end))

  it("works in the main chunk", function()
    assert.same({ n = 2, 1, 2 }, opero.all { after(0, 1), function() return 2 end })
    assert.equal("x", raised(opero.all, { after(1000), (broken "x") }))
    local task = opero.spawn(function() return 3 end)
    assert.same({ n = 1, 3 }, opero.all { task })
  end)

  it("runs thousands", simulated(function()
    local entries = {}
    for i = 1, 5000 do
      entries[i] = after(i % 10, i)
    end
    local results = opero.all(entries)
    assert.equal(5000, results.n)
    assert.equal(4999, results[4999])
  end))
end)

describe("any", function()
  it("returns all results of the first success and cancels the others", simulated(function()
    local task = opero.spawn(after(100))
    assert.same({ n = 3, "b", nil, nil }, table.pack(opero.any {
      after(50, "a"), fail_after(1, "x"), after(2, "b", nil, nil), task,
    }))
    assert.equal(2, opero.now())
    assert.equal(2, ended)
    assert.equal("cancelled", task:status())
    assert.equal(1, #opero.tasks())
  end))

  it("counts nil for a success, and nil with an error for none", simulated(function()
    assert.same({ n = 0 }, table.pack(opero.any { after(1) }))
    assert.same({ n = 1, nil }, table.pack(opero.any { after(1, nil), after(0, nil, "no") }))
  end))

  it("takes a task for an entry", simulated(function()
    local task = opero.spawn(after(1, "t", 2))
    assert.same({ n = 2, "t", 2 }, table.pack(opero.any { after(5), task }))
  end))

  it("raises AllFailedError when all have failed, with the errors in order", simulated(function()
    local last = { "last" }
    local task = opero.spawn(fail_after(1, "task"))
    local err = raised(opero.any, { fail_after(3, last), task, fail_after(2, nil) })
    assert.is_true(errors.is(err, errors.AllFailedError))
    assert.same({ n = 3, last, "task", nil }, err.errors)
    assert.equal(3, opero.now())
  end))

  it("waits until the losers have ended", simulated(function()
    local log = {}
    assert.equal(1, opero.any { stubborn(log), opero.spawn(stubborn(log)), after(1, 1) })
    assert.same({ false, false }, log)
  end))

  it("ignores what losers that are cancelled fail with", simulated(function()
    assert.equal(1, opero.any {
      after(1, 1),
      function()
        pcall(opero.sleep, 100)
        error "in cleanup"
      end,
    })
  end))

  it("is cancelled with its caller", simulated(function()
    local inner = opero.spawn(after(100))
    local task = opero.spawn(opero.any, { after(100), inner })
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(2, ended)
    assert.is_true(errors.is(raised(opero.timeout, 2, opero.any, { after(100) }),
      errors.TimeoutError))
  end))

  it("counts an entry that somebody else cancelled as failed", simulated(function()
    local task = opero.spawn(opero.sleep, 100)
    task:cancel()
    assert.equal("b", opero.any { task, after(1, "b") })
  end))

  it("works in the main chunk", function()
    assert.equal(2, opero.any { (broken "x"), after(1000), function() return 2 end })
  end)
end)

describe("race", function()
  it("returns all results of the first that ends and cancels the others", simulated(function()
    assert.same({ n = 2, "b", nil }, table.pack(opero.race {
      after(5, "a"), after(2, "b", nil), fail_after(3, "x"),
    }))
    assert.equal(2, opero.now())
    assert.equal(1, ended)
    assert.equal(1, #opero.tasks())
  end))

  it("raises the error of the first that ends, unchanged", simulated(function()
    for _, err in ipairs { "x", { "table" }, false } do
      assert.equal(err, raised(opero.race, { after(5), fail_after(1, err) }))
    end
    assert.is_nil(raised(opero.race, { after(5), fail_after(1, nil) }))
    assert.equal("why", raised(opero.race, { after(5), after(1, nil, "why") }))
    assert.equal(5, ended)
  end))

  it("takes the first of several that end at the same time", simulated(function()
    assert.equal(1, opero.race { after(1, 1), after(1, 2), fail_after(1, "x") })
    assert.equal("x", raised(opero.race, { (broken "x"), after(0, 2) }))
  end))

  it("takes tasks, and cancels them when they lose", simulated(function()
    local slow, quick = opero.spawn(after(9)), opero.spawn(after(1, "quick"))
    assert.equal("quick", opero.race { slow, quick })
    assert.equal("cancelled", slow:status())
    local failed = opero.spawn(fail_after(1, "x"))
    assert.equal("x", raised(opero.race, { after(5), failed }))
  end))

  it("is cancelled with its caller", simulated(function()
    local inner = opero.spawn(after(100))
    local task = opero.spawn(opero.race, { after(100), inner })
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("cancelled", task:status())
    assert.equal(2, ended)
  end))

  it("ends with an entry that somebody else cancelled", simulated(function()
    local task = opero.spawn(opero.sleep, 100)
    task:cancel()
    assert.is_true(errors.is(raised(opero.race, { task, after(1) }), errors.CancelledError))
    opero.sleep(1)
  end))

  it("works in the main chunk", function()
    assert.equal(2, opero.race { after(1000), function() return 2 end })
    assert.equal("x", raised(opero.race, { after(1000), (broken "x") }))
  end)
end)

for _, name in ipairs { "all", "any", "race" } do
  describe(name, function()
    local combine = opero[name]

    it("names an entry that is neither a function nor a task", function()
      assert.equal(name .. "[2]: expected a function or a task, got 5",
        refused(combine, { print, 5 }).message)
      assert.equal(name .. "[1]: expected a function or a task, got nil",
        refused(combine, { nil, print }).message)
      assert.equal(name .. ".x", refused(combine, { print, x = print }).path)
      assert.equal(name .. "[1]", refused(combine, { opero.event() }).path)
    end)

    it("takes nothing but a list", function()
      for _, bad in ipairs { 5, "x", print, true } do
        assert.equal(name .. ": expected a list of functions or tasks, got "
          .. require("opero.check").show(bad), refused(combine, bad).message)
      end
      assert.equal(name, refused(combine).path)
    end)

    it("notices an entry that was cancelled alone", simulated(function()
      local function end_oneself()
        opero.current():cancel("enough")
        opero.sleep(1)
      end
      local err = raised(combine, { end_oneself, end_oneself })
      assert.is_true(errors.is(err, errors.CancelledError))
      assert.equal("cancelled: enough", err.message)
      opero.sleep(1)
      -- Before it began, too.
      local task = opero.spawn(combine, { function() end })
      opero.yield()
      for _, info in ipairs(opero.tasks()) do
        if info.task ~= task and info.task ~= opero.current() then
          info.task:cancel()
        end
      end
      assert.equal(name .. ": an entry was cancelled", raised(task.await, task).message)
    end))

    it("calls nothing when an entry is wrong", simulated(function()
      local fn, times = broken "never"
      refused(combine, { fn, 5 })
      opero.sleep(1)
      assert.equal(0, #times)
    end))

    if name ~= "all" then
      it("needs an entry", function()
        assert.equal(name .. ": expected at least one function or task, got a table",
          refused(combine, {}).message)
      end)
    end
  end)
end
