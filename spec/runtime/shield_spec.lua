local opero = require "opero"
local support = require "spec.runtime.support"

local is_cancellation = support.is_cancellation
local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.shield", function()
  it("calls a function and returns its results", simulated(function()
    assert.same({ 1, nil, 3, n = 3 }, table.pack(opero.shield(function(...)
      opero.sleep(1)
      return ...
    end, 1, nil, 3)))
    assert.equal(0, select("#", opero.shield(function() end)))
  end))

  it("raises the error of the function unchanged", simulated(function()
    local err = { "broken" }
    assert.equal(err, raised(opero.shield, error, err))
    assert.same({ false, nil, n = 2 }, table.pack(pcall(opero.shield, error)))
  end))

  it("runs the function to its end, then raises the pending cancellation", simulated(function()
    local steps = {}
    local task = opero.spawn(function()
      opero.shield(function()
        opero.sleep(2)
        steps[#steps + 1] = "shielded"
        opero.sleep(2)
        steps[#steps + 1] = "to its end"
      end)
      steps[#steps + 1] = "too far"
    end)
    opero.sleep(1)
    task:cancel("reason")
    assert.equal("reason", raised_class("CancelledError", task.await, task).reason)
    assert.same({ "shielded", "to its end" }, steps)
    assert.equal(4, opero.now())
  end))

  it("works for a cancellation that came before it", simulated(function()
    local slept = false
    local task = opero.spawn(function()
      pcall(opero.sleep, 10)
      local ok, err = pcall(opero.shield, function()
        opero.sleep(1)
        slept = true
      end)
      assert.is_false(ok)
      error(err, 0)
    end)
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.is_true(slept)
  end))

  it("raises the pending cancellation even when the function never waits", simulated(function()
    local reached = false
    local task
    task = opero.spawn(function()
      task:cancel()
      opero.shield(function() end)
      reached = true
    end)
    raised_class("CancelledError", task.await, task)
    assert.is_false(reached)
  end))

  it("gives way to an error of the function", simulated(function()
    local task = opero.spawn(opero.shield, function()
      opero.sleep(2)
      error("broken", 0)
    end)
    opero.sleep(1)
    task:cancel()
    assert.equal("broken", raised(task.await, task))
    assert.equal("failed", task:status())
  end))

  it("spares what the function spawns, before the cancellation and after", simulated(function()
    local ended = 0
    local task = opero.spawn(opero.shield, function()
      local function child(seconds)
        opero.sleep(seconds)
        ended = ended + 1
      end
      opero.spawn(child, 2)
      opero.sleep(2)
      opero.spawn(child, 2)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.equal(2, ended)
    assert.equal(4, opero.now())
  end))

  it("does not spare what was spawned outside it", simulated(function()
    local child
    local task = opero.spawn(function()
      child = opero.spawn(opero.sleep, 10)
      opero.shield(opero.sleep, 2)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", child.await, child)
    assert.equal(1, opero.now())
    raised_class("CancelledError", task.await, task)
    assert.equal(2, opero.now())
  end))

  it("does not spare a task that is cancelled itself", simulated(function()
    opero.shield(function()
      local child = opero.spawn(opero.sleep, 10)
      opero.sleep(1)
      child:cancel()
      raised_class("CancelledError", child.await, child)
    end)
    assert.equal(1, opero.now())
  end))

  it("holds against a timeout around it, which is raised at its end", simulated(function()
    local slept = false
    raised_class("TimeoutError", opero.timeout, 1, function()
      opero.shield(function()
        opero.sleep(2)
        slept = true
      end)
      error("not reached")
    end)
    assert.is_true(slept)
    assert.equal(2, opero.now())
  end))

  it("holds against a scope around it", simulated(function()
    local slept = 0
    assert.equal("broken", raised(opero.scope, function(s)
      s:spawn(function()
        opero.sleep(1)
        error("broken", 0)
      end)
      s:spawn(opero.shield, function()
        opero.sleep(2)
        slept = slept + 1
      end)
      opero.shield(function()
        opero.sleep(3)
        slept = slept + 1
      end)
    end))
    assert.equal(2, slept)
    assert.equal(3, opero.now())
  end))

  it("does not hold against timeouts and scopes inside it", simulated(function()
    opero.shield(function()
      raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 10)
      assert.equal("broken", raised(opero.scope, function(s)
        s:spawn(error, "broken", 0)
        opero.sleep(10)
      end))
      opero.sleep(1)
    end)
    assert.equal(2, opero.now())
  end))

  it("lets a timeout inside it work although a cancellation is pending", simulated(function()
    local task = opero.spawn(opero.shield, function()
      opero.sleep(2)
      raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 10)
      opero.sleep(1)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.equal(4, opero.now())
  end))

  it("nests: the cancellation waits for the end of the outermost", simulated(function()
    local reached = {}
    local task = opero.spawn(opero.shield, function()
      opero.shield(opero.sleep, 2)
      reached[#reached + 1] = opero.now()
      opero.shield(opero.sleep, 2)
      reached[#reached + 1] = opero.now()
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ 2, 4 }, reached)
  end))

  it("keeps a task of the scope it is in from being waited for too little", simulated(function()
    -- The scope has failed; it still waits for the shielded one before it raises.
    local released = false
    raised(opero.scope, function(s)
      s:spawn(function()
        local _ <close> = support.closing(function(err)
          assert.is_true(is_cancellation(err))
          opero.shield(function()
            opero.sleep(5)
            released = true
          end)
        end)
        opero.sleep(100)
      end)
      opero.sleep(1)
      error("broken", 0)
    end)
    assert.is_true(released)
    assert.equal(6, opero.now())
  end))

  it("does not begin in a task that was cancelled before it began", simulated(function()
    local called = false
    local task = opero.spawn(opero.shield, function() called = true end)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.is_false(called)
  end))

  it("spares a task deep below it when one far above is cancelled", simulated(function()
    local ended = {}
    local task = opero.spawn(function()
      opero.spawn(function()
        opero.shield(function()
          opero.spawn(function()
            opero.spawn(function()
              opero.sleep(3)
              ended[#ended + 1] = "shielded"
            end)
          end)
        end)
        ended[#ended + 1] = "too far"
      end)
      opero.sleep(10)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ "shielded" }, ended)
    assert.equal(3, opero.now())
  end))

  it("refuses what cannot be called", simulated(function()
    assert.matches("function expected", raised(opero.shield))
    assert.matches("function expected", raised(opero.shield, 1))
  end))
end)
