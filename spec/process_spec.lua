-- Child processes, as the pool uses them.

local core = require "opero.core"
local opero = require "opero"
local signal = require "posix.signal"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

-- Waits, as a task, until the child has ended; returns how.
local function ended(pid)
  local fd = assert(core.pidfd(pid))
  opero.wait(fd, "r")
  unistd.close(fd)
  local _, how, status = wait.wait(pid)
  return how, status
end

-- What a function says through a pipe when it is run in a forked child.
local function said_by_child(fn)
  local r, w = unistd.pipe()
  local pid = assert(core.fork(function()
    unistd.write(w, tostring(fn()))
  end))
  unistd.close(w)
  opero.wait(r, "r")
  local said = unistd.read(r, 1000)
  unistd.close(r)
  assert.same({ "exited", 0 }, { ended(pid) })
  return said
end

describe("core.fork", function()
  it("runs the function as a task of a runtime of its own", function()
    opero.run(function()
      assert.equal("2 done", said_by_child(function()
        local task = opero.spawn(opero.sleep, 0.001)
        local tasks = #opero.tasks()
        task:await()
        return ("%d %s"):format(tasks, task:status())
      end))
    end)
  end)

  it("leaves the parent's tasks to the parent", function()
    opero.run(function()
      local closed, permits = false, opero.semaphore(0)
      local sleeper = opero.spawn(function()
        local _ <close> = setmetatable({}, { __close = function() closed = true end })
        permits:acquire()
      end)
      opero.yield()
      assert.equal("1 cancelled false 1", said_by_child(function()
        permits:release() -- nobody waits for it here
        collectgarbage()
        sleeper:cancel()
        return ("%d %s %s %d"):format(#opero.tasks(), sleeper:status(), closed,
          permits:available())
      end))
      assert.equal("suspended", sleeper:status())
      permits:release()
      sleeper:await()
      assert.is_true(closed)
    end)
  end)

  it("ends with status 1 when the function fails", function()
    opero.run(function()
      local devnull = unistd.dup(2)
      local file = assert(io.open("/dev/null", "w"))
      unistd.dup2(require("posix.stdio").fileno(file), 2)
      local pid = assert(core.fork(function()
        error("bad luck")
      end))
      unistd.dup2(devnull, 2)
      unistd.close(devnull)
      file:close()
      assert.same({ "exited", 1 }, { ended(pid) })
    end)
  end)

  it("gives a child that can be killed", function()
    opero.run(function()
      local pid = assert(core.fork(function()
        while true do end
      end))
      signal.kill(pid, signal.SIGKILL)
      assert.same({ "killed", signal.SIGKILL }, { ended(pid) })
    end)
  end)
end)

describe("core.exec_process", function()
  it("starts a program with a descriptor as its number 3", function()
    opero.run(function()
      local r, w = unistd.pipe()
      local pid = assert(core.exec_process({ "sh", "-c", "echo hello >&3; exit 5" }, w))
      unistd.close(w)
      opero.wait(r, "r")
      assert.equal("hello\n", unistd.read(r, 100))
      unistd.close(r)
      assert.same({ "exited", 5 }, { ended(pid) })
    end)
  end)

  it("says why a program cannot be started", function()
    local pid, err = core.exec_process({ "no-such-program-here" }, 1)
    assert.is_nil(pid)
    assert.matches("^no%-such%-program%-here: ", err)
  end)

  it("refuses an empty command and arguments that are no strings", function()
    assert.has_error(function() core.exec_process({}, 1) end)
    assert.has_error(function() core.exec_process({ "true", {} }, 1) end)
  end)
end)
