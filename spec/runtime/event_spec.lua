local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.event", function()
  it("is not set at first", simulated(function()
    local event = opero.event()
    assert.is_false(event:is_set())
    event:set()
    assert.is_true(event:is_set())
    event:set()
    assert.is_true(event:is_set())
    event:clear()
    assert.is_false(event:is_set())
  end))

  it("makes tasks wait until it is set, and wakes them all in their order", simulated(function()
    local event, order = opero.event(), {}
    for i = 1, 5 do
      opero.spawn(function()
        assert.is_true(event:wait())
        order[#order + 1] = i
      end)
    end
    opero.sleep(1)
    assert.same({}, order)
    event:set()
    opero.yield()
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end))

  it("lets everybody pass while it is set", simulated(function()
    local event = opero.event()
    event:set()
    assert.is_true(event:wait())
    assert.is_true(event:wait(0))
    assert.equal(0, opero.now())
  end))

  it("wakes those who waited, even if it is cleared at once", simulated(function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.yield()
    event:set()
    event:clear()
    assert.is_true(task:await())
    raised_class("TimeoutError", event.wait, event, 1)
  end))

  it("raises TimeoutError when it is not set in time", simulated(function()
    local event = opero.event()
    raised_class("TimeoutError", event.wait, event, 1)
    assert.equal(1, opero.now())
    event:set()
    opero.sleep(10)
  end))

  it("does not mind that one who waits is cancelled", simulated(function()
    local event, order, tasks = opero.event(), {}, {}
    for i = 1, 4 do
      tasks[i] = opero.spawn(function()
        event:wait()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    tasks[1]:cancel()
    tasks[3]:cancel()
    event:set()
    opero.yield()
    assert.same({ 2, 4 }, order)
  end))

  it("does not mind that one is cancelled in the turn in which it was woken", simulated(function()
    local event, order, tasks = opero.event(), {}, {}
    for i = 1, 4 do
      tasks[i] = opero.spawn(function()
        event:wait()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    event:set()
    tasks[1]:cancel()
    tasks[3]:cancel()
    opero.yield()
    assert.same({ 2, 4 }, order)
    assert.equal("cancelled", tasks[1]:status())
  end))

  it("can be set from the main chunk and from a finalizer", function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.yield()
    setmetatable({}, { __gc = function() event:set() end })
    collectgarbage()
    assert.is_true(task:await())
  end)

  it("refuses to be mistaken for something else", simulated(function()
    local event = opero.event()
    for _, method in ipairs { "set", "clear", "wait", "is_set" } do
      assert.matches("opero.Event expected", raised(event[method], opero.semaphore(1)))
    end
  end))
end)
