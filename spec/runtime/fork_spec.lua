-- A script that forks by itself, with luaposix: both processes go on with the tasks they have.

local opero = require "opero"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

-- Runs fn in a forked child that ends with it; returns the child's exit status.
local function in_child(fn)
  local pid = assert(unistd.fork())
  if pid == 0 then
    local ok = pcall(fn)
    unistd._exit(ok and 0 or 1)
  end
  local _, how, status = wait.wait(pid)
  assert.equal("exited", how)
  return status
end

describe("after a fork of the user's own", function()
  it("what the child waits for is not taken from the parent", support.in_real_time(function()
    local r, w = unistd.pipe()
    local reader = opero.spawn(opero.wait, r, "r")
    opero.sleep(0)
    assert.equal(0, in_child(function()
      -- the same number, made known to the kernel anew, and waited for to its end
      local r2, w2 = unistd.pipe()
      unistd.write(w2, "x")
      opero.wait(r2, "r")
      reader:cancel()
      opero.timeout(0.001, pcall, opero.wait, r, "r")
    end))
    assert.equal("suspended", reader:status())
    unistd.write(w, "x")
    assert.equal("r", reader:await(1))
    unistd.close(r)
    unistd.close(w)
  end))

  it("a task of the child still waits for what it waited for", support.in_real_time(function()
    local r, w = unistd.pipe()
    local reader = opero.spawn(opero.wait, r, "r")
    opero.sleep(0)
    assert.equal(0, in_child(function()
      unistd.write(w, "x")
      assert(reader:await(1) == "r")
      unistd.read(r, 1)
    end))
    assert.equal("suspended", reader:status())
    reader:cancel()
    unistd.close(r)
    unistd.close(w)
  end))
end)
