-- opero.tasks: every live task, for finding out why a program hangs.

local opero = require "opero"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"

local simulated = support.simulated

-- The entry of a task in the list.
local function entry_of(task)
  for _, entry in ipairs(opero.tasks()) do
    if entry.task == task then
      return entry
    end
  end
end

describe("opero.tasks", function()
  it("is empty when there are none", function()
    assert.same({}, opero.tasks())
  end)

  it("lists every live task, and no other", simulated(function()
    local ended = opero.spawn(function() end)
    ended:await()
    local failed = opero.spawn(error)
    pcall(failed.await, failed)
    local sleeping = opero.spawn(opero.sleep, 10)
    opero.yield()
    local ready = opero.spawn(function() end)
    local found = {}
    for _, entry in ipairs(opero.tasks()) do
      found[entry.task] = entry.status
    end
    assert.same({
      [opero.current()] = "running", [sleeping] = "suspended", [ready] = "ready",
    }, found)
    sleeping:cancel()
  end))

  it("says what each of them waits for", simulated(function()
    local event, semaphore, channel = opero.event(), opero.semaphore(0), opero.channel(0)
    local awaited = opero.spawn(event.wait, event):name("awaited")
    local cases = {
      ["event:wait"] = function() event:wait() end,
      ["semaphore:acquire"] = function() semaphore:acquire() end,
      ["channel:receive"] = function() channel:receive() end,
      ["channel:send"] = function() opero.channel(0):send(1) end,
      ["opero.sleep"] = function() opero.sleep(10) end,
      ["opero.await (a callback)"] = function() opero.await(function() end) end,
      ["task:await ('awaited')"] = function() awaited:await() end,
      ["its children"] = function() opero.spawn(event.wait, event) end,
      ["the tasks of its scope"] = function()
        opero.scope(function(s) s:spawn(event.wait, event) end)
      end,
    }
    local tasks = {}
    for what, fn in pairs(cases) do
      tasks[what] = opero.spawn(fn)
    end
    support.settle()
    for what, task in pairs(tasks) do
      local entry = entry_of(task)
      assert.equal("suspended", entry.status)
      assert.equal(what, entry.waiting_for)
      task:cancel()
    end
    event:set()
  end))

  it("says which descriptor a task waits for", function()
    local r, w = unistd.pipe()
    opero.run(function()
      local task = opero.spawn(opero.wait, r, "r")
      opero.yield()
      assert.equal(("opero.wait (descriptor %d, \"r\")"):format(r), entry_of(task).waiting_for)
      task:cancel()
    end)
    unistd.close(r)
    unistd.close(w)
  end)

  it("gives each its name: its own, or where its function is", simulated(function()
    local named = opero.spawn(opero.sleep, 10):name("sleeper")
    local fn = function() opero.sleep(10) end
    local unnamed = opero.spawn(fn)
    local line = debug.getinfo(fn, "S").linedefined
    local here = "tasks_spec.lua:" .. line .. "$"
    assert.matches(here, entry_of(unnamed).name)
    opero.yield()
    assert.equal("sleeper", entry_of(named).name)
    assert.matches(here, entry_of(unnamed).name)
    assert.matches(here, unnamed:name())
    named:cancel()
    unnamed:cancel()
  end))

  it("gives each its traceback: its own frames, down to where it waits", simulated(function()
    local function deepest() opero.sleep(10) end
    local function deep()
      deepest()
      return nil
    end
    local task = opero.spawn(function()
      deep()
      return nil
    end)
    opero.yield()
    local traceback = entry_of(task).traceback
    assert.matches("sleep'", traceback)
    assert.matches("'deepest'", traceback)
    assert.matches("'deep'", traceback)
    assert.matches("tasks_spec.lua:%d+", traceback)
    task:cancel()
  end))

  it("shows a task whose function has returned and whose children live", simulated(function()
    local task = opero.spawn(function() opero.spawn(opero.sleep, 10) end)
    opero.sleep(1)
    local entry = entry_of(task)
    assert.equal("suspended", entry.status)
    assert.equal("its children", entry.waiting_for)
  end))

  it("does not say what a task that is ready waits for", simulated(function()
    local task = opero.spawn(function() end)
    assert.equal("ready", entry_of(task).status)
    assert.is_nil(entry_of(task).waiting_for)
    assert.is_nil(entry_of(opero.current()).waiting_for)
  end))

  it("can be asked from the main chunk, a finalizer, and inside table.sort", function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.step()
    assert.equal(1, #opero.tasks())
    local count
    setmetatable({}, { __gc = function() count = #opero.tasks() end })
    collectgarbage()
    assert.equal(1, count)
    opero.run(function()
      table.sort({ 2, 1 }, function(a, b)
        count = #opero.tasks()
        return a < b
      end)
    end)
    assert.equal(2, count)
    event:set()
    task:await()
  end)

  it("tells tasks of a simulation from those of the real clock", function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.step()
    opero.simulate(function()
      assert.equal(1, #opero.tasks())
      assert.equal(opero.current(), opero.tasks()[1].task)
    end)
    assert.equal(task, opero.tasks()[1].task)
    event:set()
    task:await()
  end)

  it("lists ten thousand", simulated(function()
    local event = opero.event()
    for _ = 1, 10000 do
      opero.spawn(event.wait, event)
    end
    opero.yield()
    assert.equal(10001, #opero.tasks())
    event:set()
  end))
end)

describe("task:status", function()
  it("is ready, running, suspended, and then how it ended", simulated(function()
    local statuses = {}
    local function note(task) statuses[#statuses + 1] = task:status() end
    local task
    task = opero.spawn(function()
      note(task)
      opero.sleep(1)
    end)
    note(task)
    opero.yield()
    note(task)
    task:await()
    note(task)
    local failed, cancelled = opero.spawn(error), opero.spawn(opero.sleep, 1)
    cancelled:cancel()
    pcall(failed.await, failed)
    note(failed)
    note(cancelled)
    assert.same({ "ready", "running", "suspended", "done", "failed", "cancelled" }, statuses)
  end))
end)
