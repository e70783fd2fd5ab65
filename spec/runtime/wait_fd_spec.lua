-- Waiting for descriptors. Real descriptors, real time; nothing here waits for time to pass but
-- where a timeout is the subject.

local opero = require "opero"
local fcntl = require "posix.fcntl"
local socket = require "posix.sys.socket"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"

local in_real_time, raised, raised_class =
  support.in_real_time, support.raised, support.raised_class

-- A pipe; both ends are closed, if they still are what they were, when `keeper` is.
local function pipe()
  local r, w = assert(unistd.pipe())
  return r, w, support.closing(function()
    unistd.close(r)
    unistd.close(w)
  end)
end

local function socket_pair()
  local a, b = assert(socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0))
  return a, b, support.closing(function()
    unistd.close(a)
    unistd.close(b)
  end)
end

-- Fills what is between the two ends, so that `fd` is not ready to be written to.
local function fill(fd)
  assert(fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.O_NONBLOCK))
  while unistd.write(fd, ("x"):rep(4096)) do end -- luacheck: ignore
  while unistd.write(fd, "x") do end -- luacheck: ignore
end

-- Opens something under the number `fd`, which must be free.
local function reopen(fd, path)
  local new = assert(fcntl.open(path, fcntl.O_RDONLY))
  assert.equal(fd, new, "the number is reused")
end

describe("opero.wait", function()
  it("returns when there is something to read", in_real_time(function()
    local r, w, _ <close> = pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    assert.equal("suspended", task:status())
    unistd.write(w, "x")
    assert.equal("r", task:await())
    assert.equal("r", opero.wait(r, "r"), "it still is")
    assert.equal("x", unistd.read(r, 10))
    raised_class("TimeoutError", opero.wait, r, "r", 0)
  end))

  it("returns when there is room to write", in_real_time(function()
    local r, w, _ <close> = pipe()
    assert.equal("w", opero.wait(w, "w"))
    fill(w)
    local task = opero.spawn(opero.wait, w, "w")
    raised_class("TimeoutError", task.await, task, 0)
    unistd.read(r, 65536)
    assert.equal("w", task:await())
  end))

  it("says what of the two is ready", in_real_time(function()
    local a, b, _ <close> = socket_pair()
    assert.equal("w", opero.wait(a, "rw"))
    unistd.write(b, "x")
    assert.equal("rw", opero.wait(a, "rw"))
    fill(a)
    assert.equal("r", opero.wait(a, "rw"))
  end))

  it("returns at the end of the file", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(w)
    assert.equal("r", task:await())
    assert.equal("", unistd.read(r, 1))
    unistd.close(r)
  end))

  it("returns when nobody will read what is written", in_real_time(function()
    local r, w = unistd.pipe()
    fill(w)
    local task = opero.spawn(opero.wait, w, "w")
    opero.yield()
    unistd.close(r)
    assert.equal("w", task:await())
    unistd.close(w)
  end))

  it("lets two tasks wait for one descriptor, one to read and one to write", in_real_time(function()
    local a, b, _ <close> = socket_pair()
    fill(a)
    local order = {}
    local reader = opero.spawn(function()
      local ready = opero.wait(a, "r")
      order[#order + 1] = ready
    end)
    local writer = opero.spawn(function()
      local ready = opero.wait(a, "w")
      order[#order + 1] = ready
    end)
    opero.yield()
    unistd.write(b, "x")
    reader:await()
    assert.same({ "r" }, order)
    assert.equal("suspended", writer:status())
    unistd.read(b, 1000000)
    writer:await()
    assert.same({ "r", "w" }, order)
  end))

  it("lets two tasks wait for one descriptor, the writer first", in_real_time(function()
    local a, b, _ <close> = socket_pair()
    local reader = opero.spawn(opero.wait, a, "r")
    opero.yield()
    assert.equal("w", opero.wait(a, "w"))
    assert.equal("suspended", reader:status())
    unistd.write(b, "x")
    assert.equal("r", reader:await())
  end))

  it("wakes all who wait for the same", in_real_time(function()
    local r, w, _ <close> = pipe()
    local tasks = {}
    for i = 1, 50 do
      tasks[i] = opero.spawn(opero.wait, r, "r")
    end
    opero.yield()
    unistd.write(w, "x")
    for i = 1, 50 do
      assert.equal("r", tasks[i]:await())
    end
  end))

  it("raises TimeoutError when nothing comes", in_real_time(function()
    local r, w, _ <close> = pipe()
    local before = opero.now()
    local err = raised_class("TimeoutError", opero.wait, r, "r", 0.002)
    assert.is_true(opero.now() - before >= 0.002)
    assert.equal("opero.wait timed out after 0.002 s", err.message)
    unistd.write(w, "x")
    assert.equal("r", opero.wait(r, "r", 1))
  end))

  it("is cancelled like any suspension", in_real_time(function()
    local r, w, _ <close> = pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    unistd.write(w, "x")
    assert.equal("r", opero.wait(r, "r"), "the next one finds all in order")
  end))

  it("is cancelled in the turn in which it was woken, and takes nothing", in_real_time(function()
    local r, w, _ <close> = pipe()
    -- Both become ready together; the first to run cancels the other.
    local tasks, woken = {}, {}
    for i = 1, 2 do
      tasks[i] = opero.spawn(function()
        opero.wait(r, "r")
        woken[#woken + 1] = i
        tasks[3 - i]:cancel()
      end)
    end
    opero.yield()
    unistd.write(w, "x")
    assert.is_true(pcall(tasks[1].await, tasks[1]) ~= pcall(tasks[2].await, tasks[2]))
    assert.equal(1, #woken)
    assert.equal("r", opero.wait(r, "r"))
  end))

  it("notices events although other tasks never stop", in_real_time(function()
    local r, w, _ <close> = pipe()
    local done = false
    opero.spawn(function()
      while not done do
        opero.yield()
      end
    end)
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.write(w, "x")
    assert.equal("r", task:await())
    done = true
  end))

  it("serves many descriptors at once", in_real_time(function()
    local count, pipes = 0, {}
    opero.scope(function(s)
      for i = 1, 300 do
        local r, w = assert(unistd.pipe())
        pipes[i] = { r, w }
        s:spawn(function()
          opero.wait(r, "r")
          assert.equal(tostring(i), unistd.read(r, 10))
          count = count + 1
        end)
      end
      opero.yield()
      for i = 300, 1, -1 do
        unistd.write(pipes[i][2], tostring(i))
      end
    end)
    for i = 1, 300 do
      unistd.close(pipes[i][1])
      unistd.close(pipes[i][2])
    end
    assert.equal(300, count)
  end))

  it("carries a megabyte through a pipe", in_real_time(function()
    local r, w, _ <close> = pipe()
    local size, received = 1 << 20, 0
    assert(fcntl.fcntl(w, fcntl.F_SETFL, fcntl.O_NONBLOCK))
    opero.scope(function(s)
      s:spawn(function()
        local left = size
        while left > 0 do
          opero.wait(w, "w")
          left = left - (unistd.write(w, ("x"):rep(math.min(left, 4096))) or 0)
        end
      end)
      while received < size do
        opero.wait(r, "r")
        received = received + #unistd.read(r, 65536)
      end
    end)
    assert.equal(size, received)
  end))

  it("works from the main chunk", function()
    local r, w, _ <close> = pipe()
    unistd.write(w, "x")
    assert.equal("r", opero.wait(r, "r"))
    unistd.read(r, 1)
    raised_class("TimeoutError", opero.wait, r, "r", 0.001)
  end)
end)

describe("opero.wait takes", function()
  it("a file of Lua's", in_real_time(function()
    local file <close> = assert(io.popen("echo hello"))
    assert.equal("r", opero.wait(file, "r"))
    assert.equal("hello", file:read("l"))
  end))

  it("an object with getfd, pollfd or fileno", in_real_time(function()
    local r, w, _ <close> = pipe()
    unistd.write(w, "x")
    for _, method in ipairs { "getfd", "pollfd", "fileno" } do
      local object = {}
      object[method] = function(self)
        return self.fd
      end
      object.fd = r
      assert.equal("r", opero.wait(object, "r"))
      assert.equal("r", opero.wait(setmetatable({}, { __index = object }), "r"))
    end
  end))

  it("a whole number of any kind", in_real_time(function()
    local r, w, _ <close> = pipe()
    unistd.write(w, "x")
    assert.equal("r", opero.wait(r + 0.0, "r"))
  end))

  it("regular files: they are always ready", in_real_time(function()
    local path = os.tmpname()
    local file <close> = assert(io.open(path, "w+"))
    os.remove(path)
    for _, what in ipairs { "r", "w", "rw" } do
      assert.equal(what, opero.wait(file, what))
      assert.equal(what, opero.wait(file, what, 0))
    end
  end))
end)

describe("opero.wait refuses", function()
  it("what is no descriptor", in_real_time(function()
    for _, value in ipairs { -1, 1.5, math.huge, 1 << 40 } do
      assert.matches("not a descriptor", raised(opero.wait, value, "r"))
    end
    for _, value in ipairs { true, "x", "0", print } do
      assert.matches("descriptor %(an integer%), file, or object", raised(opero.wait, value, "r"))
    end
    assert.matches("descriptor %(an integer%)", raised(opero.wait, nil, "r"))
  end))

  it("an object that has none of the methods", in_real_time(function()
    assert.matches("none of the methods getfd, pollfd and fileno", raised(opero.wait, {}, "r"))
    assert.matches("none of the methods", raised(opero.wait, opero.event(), "r"))
  end))

  it("an object whose method gives no descriptor, and says which", in_real_time(function()
    for _, value in ipairs { "x", 1.5, {}, false } do
      assert.matches("getfd%(%) gave no descriptor", raised(opero.wait, {
        getfd = function() return value end,
      }, "r"))
    end
    local invalid = { getfd = function() return -1 end }
    assert.matches("not a descriptor", raised(opero.wait, invalid, "r"))
    assert.equal("broken", raised(opero.wait, { getfd = function() error("broken", 0) end }, "r"))
  end))

  it("a file that is closed", in_real_time(function()
    local file = assert(io.open("/dev/null"))
    file:close()
    assert.matches("the file is closed", raised(opero.wait, file, "r"))
  end))

  it("a descriptor that is not open", in_real_time(function()
    local r, w = unistd.pipe()
    unistd.close(r)
    unistd.close(w)
    assert.matches("opero.wait: descriptor %d+: Bad file descriptor", raised(opero.wait, r, "r"))
    assert.matches("Bad file descriptor", raised(opero.wait, 1000000, "r"))
  end))

  it("other directions than r, w and rw", in_real_time(function()
    local r, _, _ <close> = pipe()
    for _, direction in ipairs { "x", "", "wr", "R", "read" } do
      assert.matches("invalid option", raised(opero.wait, r, direction))
    end
    assert.matches("string expected", raised(opero.wait, r))
    assert.matches("string expected", raised(opero.wait, r, {}))
  end))
end)

describe("a descriptor closed while it is waited for", function()
  local closed = "descriptor %d+ was closed while it was waited for"

  it("raises an error", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    assert.matches(closed, raised(task.await, task))
    unistd.close(w)
  end))

  it("raises an error in all who wait for it", in_real_time(function()
    local a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM, 0)
    fill(a)
    local tasks = {
      opero.spawn(opero.wait, a, "r"), opero.spawn(opero.wait, a, "w"),
      opero.spawn(opero.wait, a, "rw"), opero.spawn(opero.wait, a, "r", 60),
    }
    opero.yield()
    unistd.close(a)
    for _, task in ipairs(tasks) do
      assert.matches(closed, raised(task.await, task))
    end
    unistd.close(b)
  end))

  it("raises an error although other tasks never stop", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    while task:status() == "suspended" or task:status() == "ready" do
      opero.yield() -- a hang here is the failure
    end
    assert.matches(closed, raised(task.await, task))
    unistd.close(w)
  end))

  it("and opened again as something else raises an error", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    reopen(r, "/dev/null")
    assert.matches(closed, raised(task.await, task))
    unistd.close(r)
    unistd.close(w)
  end))

  it("and opened again as a regular file raises an error, at any load", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    reopen(r, "/proc/self/status")
    assert.equal("r", opero.wait(r, "r"))
    while task:status() ~= "failed" do
      opero.yield() -- a hang here is the failure
    end
    assert.matches(closed, raised(task.await, task))
    unistd.close(r)
    unistd.close(w)
  end))

  it("and reused for another pipe, leaves the new one alone", in_real_time(function()
    local r, w = unistd.pipe()
    local old = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    local new_r, new_w = unistd.pipe()
    assert.equal(r, new_r)
    local new = opero.spawn(opero.wait, new_r, "r")
    assert.matches(closed, raised(old.await, old))
    assert.equal("suspended", new:status())
    unistd.write(new_w, "x")
    assert.equal("r", new:await())
    for _, fd in ipairs { w, new_r, new_w } do
      unistd.close(fd)
    end
  end))

  it("raises an error though its file lives on under another number", in_real_time(function()
    local r, w = unistd.pipe()
    local copy = unistd.dup(r)
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    unistd.close(r)
    unistd.write(w, "x") -- an event of the file, not of the descriptor
    local ok, err = pcall(task.await, task)
    assert.is_false(ok)
    assert.matches(closed, err)
    assert.equal("r", opero.wait(copy, "r"))
    for _, fd in ipairs { copy, w } do
      unistd.close(fd)
    end
  end))

  it("by the host between two steps raises an error", function()
    local r, w = unistd.pipe()
    local task = opero.spawn(function() return pcall(opero.wait, r, "r") end)
    opero.step()
    opero.step()
    opero.step()
    unistd.close(r)
    local steps = 0
    while task:status() ~= "done" do
      opero.step(1)
      steps = steps + 1
      assert.is_true(steps < 5)
    end
    assert.matches(closed, select(2, task:await()))
    unistd.close(w)
  end)

  it("does not trouble those who wait for others", in_real_time(function()
    local r, w, _ <close> = pipe()
    local closing_r, closing_w = unistd.pipe()
    local other = opero.spawn(opero.wait, r, "r")
    local task = opero.spawn(opero.wait, closing_r, "r")
    opero.yield()
    unistd.close(closing_r)
    assert.matches(closed, raised(task.await, task))
    assert.equal("suspended", other:status())
    unistd.write(w, "x")
    assert.equal("r", other:await())
    unistd.close(closing_w)
  end))

  it("after its wait was cancelled troubles nobody", in_real_time(function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.yield()
    task:cancel()
    unistd.close(r)
    raised_class("CancelledError", task.await, task)
    local again_r, again_w = unistd.pipe()
    assert.equal(r, again_r)
    unistd.write(again_w, "x")
    assert.equal("r", opero.wait(again_r, "r"))
    for _, fd in ipairs { w, again_r, again_w } do
      unistd.close(fd)
    end
  end))
end)
