-- How errors travel through the runtime: unchanged, with their traceback, and never lost.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

-- Values of all kinds; nil is looked at apart.
local function odd_errors()
  return {
    "a text", "", 0, 42, 1.5, math.huge, true, false, {}, { code = 404 }, print, function() end,
    coroutine.create(print), io.stdout, opero.current(), errors.OperoError("an object"),
    setmetatable({}, { __tostring = function() error("no text") end }),
    setmetatable({}, { __eq = function() return true end }),
    setmetatable({}, { __index = function() error("no fields") end }),
  }
end

describe("an error of any value", function()
  it("arrives unchanged where its task is awaited", simulated(function()
    for _, err in ipairs(odd_errors()) do
      for _, pause in ipairs { opero.yield, function() end } do
        local task = opero.spawn(function()
          pause()
          error(err, 0)
        end)
        local ok, e = pcall(task.await, task)
        assert.is_false(ok)
        assert.is_true(rawequal(err, e))
      end
    end
  end))

  it("arrives unchanged in the parent when nobody awaits it", simulated(function()
    for _, err in ipairs(odd_errors()) do
      local parent = opero.spawn(function() opero.spawn(error, err, 0) end)
      local ok, e = pcall(parent.await, parent)
      assert.is_false(ok)
      assert.is_true(rawequal(err, e))
    end
  end))

  it("arrives unchanged through scope, timeout, shield, run and await", simulated(function()
    for _, err in ipairs(odd_errors()) do
      local function fail()
        opero.yield()
        error(err, 0)
      end
      for _, call in ipairs {
        function() opero.scope(fail) end,
        function() opero.scope(function(s) s:spawn(fail) end) end,
        function() opero.timeout(1, fail) end,
        function() opero.timeout(1, function() opero.spawn(fail) end) end,
        function() opero.shield(fail) end,
        function() opero.run(fail) end,
        function() opero.await(fail) end,
        function() opero.wrap(fail)() end,
      } do
        local ok, e = pcall(call)
        assert.is_false(ok)
        assert.is_true(rawequal(err, e))
      end
    end
  end))

  it("arrives unchanged in the main chunk", function()
    for _, err in ipairs(odd_errors()) do
      for _, enter in ipairs { opero.run, opero.simulate, opero.scope, opero.shield } do
        local ok, e = pcall(enter, function() error(err, 0) end)
        assert.is_false(ok)
        assert.is_true(rawequal(err, e))
      end
    end
  end)

  it("may be nil", simulated(function()
    local function fails_with_nil(fn, ...)
      local results = table.pack(pcall(fn, ...))
      assert.same({ false, nil, n = 2 }, results)
    end
    local task = opero.spawn(error)
    fails_with_nil(task.await, task)
    fails_with_nil(task.await, task)
    assert.equal("failed", task:status())
    local parent = opero.spawn(function() opero.spawn(error) end)
    fails_with_nil(parent.await, parent)
    fails_with_nil(opero.run, error)
    fails_with_nil(opero.scope, function(s) s:spawn(error) end)
    fails_with_nil(opero.timeout, 1, function() opero.spawn(error) end)
    fails_with_nil(opero.wrap(error))
  end))

  it("may be nil in the main chunk", function()
    assert.same({ false, nil, n = 2 }, table.pack(pcall(opero.run, error)))
    assert.same({ false, nil, n = 2 }, table.pack(pcall(opero.simulate, error)))
    opero.spawn(error)
    assert.same({ false, nil, n = 2 }, table.pack(pcall(opero.step)))
    opero.step()
  end)

  it("keeps its place among several", simulated(function()
    local parent = opero.spawn(function()
      opero.spawn(error, false, 0)
      opero.spawn(error, { "table" }, 0)
      opero.spawn(error, "text", 0)
    end)
    local err = raised_class("AggregateError", parent.await, parent)
    assert.same({ false, { "table" }, "text" }, err.errors)
    assert.equal(3, #err.errors)
  end))
end)

describe("an error nobody awaited", function()
  it("surfaces in the parent when that ends, once", simulated(function()
    local child
    local parent = opero.spawn(function()
      child = opero.spawn(error, "broken", 0)
      opero.sleep(5)
      return "the parent goes on until then"
    end)
    assert.equal("broken", raised(parent.await, parent))
    assert.equal(5, opero.now())
    assert.equal("failed", parent:status())
    assert.equal("failed", child:status())
    -- It was raised here, by await, and so it does not surface in us.
  end))

  it("surfaces further up when nobody awaits the parent either", simulated(function()
    local top = opero.spawn(function()
      opero.spawn(function()
        opero.spawn(function()
          opero.spawn(error, "from the bottom", 0)
        end)
      end)
    end)
    assert.equal("from the bottom", raised(top.await, top))
  end))

  it("does not cancel the siblings of its task", simulated(function()
    local done = false
    local parent = opero.spawn(function()
      opero.spawn(error, "broken", 0)
      opero.spawn(function()
        opero.sleep(5)
        done = true
      end)
    end)
    assert.equal("broken", raised(parent.await, parent))
    assert.is_true(done)
  end))

  it("comes with the others in an AggregateError", simulated(function()
    local parent = opero.spawn(function()
      for i = 3, 1, -1 do
        opero.spawn(function()
          opero.sleep(i)
          error("error " .. i, 0)
        end)
      end
    end)
    local err = raised_class("AggregateError", parent.await, parent)
    assert.same({ "error 1", "error 2", "error 3" }, err.errors)
    assert.equal("3 tasks failed:\n  error 1\n  error 2\n  error 3", err.message)
  end))

  it("comes after the parent's own", simulated(function()
    local parent = opero.spawn(function()
      opero.spawn(error, "the child's", 0)
      opero.yield()
      error("the parent's", 0)
    end)
    local err = raised_class("AggregateError", parent.await, parent)
    assert.same({ "the parent's", "the child's" }, err.errors)
  end))

  it("is not lost when the parent is cancelled", simulated(function()
    local parent = opero.spawn(function()
      opero.spawn(error, "the child's", 0)
      opero.sleep(10)
    end)
    opero.yield()
    opero.yield()
    parent:cancel()
    local err = raised(parent.await, parent)
    local list = errors.is(err, errors.AggregateError) and err.errors or { err }
    assert.equal("the child's", list[#list])
  end))

  it("is one that was awaited in vain: its awaiter was cancelled", simulated(function()
    local parent = opero.spawn(function()
      local failing = opero.spawn(function()
        opero.sleep(2)
        error("broken", 0)
      end)
      local awaiter = opero.spawn(failing.await, failing)
      opero.sleep(1)
      awaiter:cancel()
    end)
    assert.equal("broken", raised(parent.await, parent))
  end))

  it("is one whose awaiter was cancelled in the turn of the failure", simulated(function()
    local parent = opero.spawn(function()
      local awaiter
      local failing = opero.spawn(function()
        opero.sleep(1)
        error("broken", 0)
      end)
      opero.spawn(function()
        opero.sleep(1)
        awaiter:cancel()
      end)
      awaiter = opero.spawn(function()
        assert.is_true(support.is_cancellation(raised(failing.await, failing)))
      end)
    end)
    assert.equal("broken", raised(parent.await, parent))
  end))

  it("reaches somebody even if the parent had ended in that turn", simulated(function()
    local failing, awaiter, got
    local parent = opero.spawn(function()
      failing = opero.spawn(function()
        opero.sleep(1)
        error("broken", 0)
      end)
    end)
    opero.yield()
    opero.yield()
    awaiter = opero.spawn(function()
      got = raised(failing.await, failing)
      opero.yield() -- the cancellation comes here
      error("not reached")
    end)
    opero.spawn(function()
      opero.sleep(1)
      awaiter:cancel()
    end)
    -- The parent has left the error to the awaiter and ended; so the awaiter gets it.
    parent:await()
    raised_class("CancelledError", awaiter.await, awaiter)
    assert.equal("broken", got)
  end))

  it("is not one that somebody awaits, even if he swallows it", simulated(function()
    opero.run(function()
      local task = opero.spawn(error, "broken", 0)
      opero.spawn(function() pcall(task.await, task) end)
    end)
  end))

  it("surfaces when it was awaited by nobody before, and is awaited later", simulated(function()
    local child
    local parent = opero.spawn(function() child = opero.spawn(error, "broken", 0) end)
    assert.equal("broken", raised(parent.await, parent))
    assert.equal("broken", raised(child.await, child))
  end))

  it("of the main chunk's task is raised by the next run that itself succeeds", function()
    opero.spawn(error, "orphan", 0)
    assert.equal("its own", raised(opero.run, function()
      opero.yield()
      error("its own", 0)
    end))
    assert.equal("orphan", raised(opero.run, function() return "lost result" end))
    assert.equal("fine", opero.run(function() return "fine" end))
  end)

  it("of the main chunk's tasks is raised by the next step, or wait", function()
    opero.spawn(error, "first", 0)
    assert.equal("first", raised(opero.step))
    opero.step()
    opero.spawn(error, "second", 0)
    assert.equal("second", raised(opero.sleep, 0.001))
    opero.spawn(error, "third", 0)
    opero.spawn(error, "fourth", 0)
    local err = raised_class("AggregateError", opero.step)
    assert.same({ "third", "fourth" }, err.errors)
    opero.step()
  end)

  it("of a task whose handle is gone is raised all the same", simulated(function()
    local parent = opero.spawn(function()
      for i = 1, 100 do
        opero.spawn(error, i, 0)
        collectgarbage("step")
      end
      opero.yield()
      collectgarbage()
    end)
    assert.equal(100, #raised_class("AggregateError", parent.await, parent).errors)
  end))
end)

describe("an error in a <close>", function()
  it("replaces the one that was on its way, as Lua has it", simulated(function()
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() error("second", 0) end)
      opero.yield()
      error("first", 0)
    end)
    assert.equal("second", raised(task.await, task))
  end))

  it("fails a task that had returned", simulated(function()
    local task = opero.spawn(function()
      local _ <close> = support.closing(function()
        opero.sleep(1)
        error("in close", 0)
      end)
      return "result"
    end)
    assert.equal("in close", raised(task.await, task))
    assert.equal(1, opero.now())
  end))

  it("is not lost after a cancellation", simulated(function()
    local parent = opero.spawn(function()
      local task = opero.spawn(function()
        local _ <close> = support.closing(function() error("in close", 0) end)
        opero.sleep(10)
      end)
      opero.yield()
      task:cancel()
    end)
    assert.equal("in close", raised(parent.await, parent))
  end))
end)

describe("a traceback", function()
  local function inner() error("broken") end
  local function middle()
    opero.yield()
    inner()
    return nil
  end
  local function outer()
    middle()
    return nil
  end

  it("shows the task's own frames", simulated(function()
    local task = opero.spawn(outer)
    pcall(task.await, task)
    local traceback = task:traceback()
    assert.matches("in upvalue 'inner'", traceback)
    assert.matches("in upvalue 'middle'", traceback)
    assert.matches("in function <.*errors_spec.lua:%d+>", traceback)
  end))

  it("is kept by opero.traceback on the way up", simulated(function()
    local task = opero.spawn(outer)
    local traceback
    xpcall(task.await, function(err)
      traceback = opero.traceback(err)
      return err
    end, task)
    assert.matches("'inner'", traceback)

    local parent = opero.spawn(function() opero.spawn(outer) end)
    local ok, err = pcall(parent.await, parent)
    assert.is_false(ok)
    assert.matches("'inner'", opero.traceback(err))
  end))

  it("is kept through whatever stands between", simulated(function()
    for _, call in ipairs {
      function() opero.scope(outer) end,
      function() opero.scope(function(s) s:spawn(outer) end) end,
      function() opero.timeout(1, outer) end,
      function() opero.shield(outer) end,
      function() opero.run(outer) end,
      function() opero.await(outer) end,
      function() opero.wrap(outer)() end,
      function()
        local ok, err = pcall(opero.run, outer)
        assert.is_false(ok)
        error(err, 0)
      end,
      function()
        local _ <close> = support.closing(opero.yield)
        opero.run(outer)
      end,
      function()
        opero.scope(function(s)
          s:spawn(function()
            local _ <close> = support.closing(function() pcall(error, "another") end)
            opero.sleep(10)
          end)
          s:spawn(function() opero.timeout(1, opero.run, outer) end)
        end)
      end,
    } do
      local ok, err = pcall(call)
      assert.is_false(ok)
      assert.matches("'inner'", opero.traceback(err))
    end
  end))

  it("is kept for errors that are no strings, too", simulated(function()
    local err = { "broken" }
    local function raise_table() error(err) end
    local task = opero.spawn(function()
      raise_table()
      return nil
    end)
    pcall(task.await, task)
    assert.matches("'raise_table'", task:traceback())
    assert.matches("'raise_table'", opero.traceback(err))
  end))

  it("is kept through opero.run", function()
    local ok, err = pcall(opero.run, outer)
    assert.is_false(ok)
    assert.matches("errors_spec.lua:%d+: broken", err)
    assert.matches("'inner'", opero.traceback(err))
  end)

  it("of a task that waits shows where", simulated(function()
    local task = opero.spawn(function() middle() end)
    assert.matches("traceback", task:traceback())
    opero.yield()
    local traceback = task:traceback()
    assert.matches("yield'", traceback)
    assert.matches("'middle'", traceback)
    task:cancel()
  end))

  it("of a task that has succeeded is nil", simulated(function()
    local task = opero.spawn(function() end)
    task:await()
    assert.is_nil((task:traceback()))
  end))

  it("without an error is where the caller stands", simulated(function()
    local function here() return (opero.traceback()) end
    assert.matches("errors_spec.lua", here())
  end))
end)

describe("several errors", function()
  it("that cannot be shown are counted all the same", simulated(function()
    local hostile = setmetatable({}, { __tostring = function() error("no text") end })
    local parent = opero.spawn(function()
      opero.spawn(error, hostile)
      opero.spawn(error, hostile)
    end)
    local err = raised_class("AggregateError", parent.await, parent)
    assert.equal(2, #err.errors)
    assert.is_true(rawequal(hostile, err.errors[1]))
  end))

  it("of ten thousand tasks are all there", simulated(function()
    local parent = opero.spawn(function()
      for i = 1, 10000 do
        opero.spawn(error, i, 0)
      end
    end)
    local err = raised_class("AggregateError", parent.await, parent)
    assert.equal(10000, #err.errors)
    assert.equal(10000, err.errors[10000])
  end))
end)
