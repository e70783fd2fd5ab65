-- Log records of worker processes: they come through the outputs of the process that made the pool.

local log_support = require "spec.logging.support"
local opero = require "opero"
local signal = require "posix.signal"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"

-- As in the specs of the pool: in real time, with an end.
local function task(fn)
  return function()
    opero.run(function()
      opero.timeout(60, fn)
    end)
  end
end

-- A list 1, 2, ... of so many.
local function numbers(count)
  local list = {}
  for i = 1, count do
    list[i] = i
  end
  return list
end

for _, backend in ipairs { "fork", "spawn" } do
  describe("what workers of backend " .. backend .. " log", function()
    local records, log

    local function new_pool(options)
      return support.pool(backend, options or { max_workers = 1 })
    end

    before_each(function()
      records = log_support.record { level = "debug" }
      log = opero.get_logger("app")
    end)

    after_each(function()
      log_support.restore()
      support.clean_up()
    end)

    it("arrives, with the worker's pid", task(function()
      local pool <close> = new_pool()
      local pid = pool:call(function(n, text)
        require "opero".get_logger("app.job"):warning("got %d %s", n, text, {
          list = { 1, { a = 2 } },
        })
        return require "posix.unistd".getpid()
      end, 7, "x")
      assert.equal(1, #records)
      assert.equal(pid, records[1].pid)
      assert.equal("warning", records[1].level)
      assert.equal("app.job", records[1].logger)
      assert.equal("got 7 x", records[1].message)
      assert.same({ list = { 1, { a = 2 } } }, records[1].fields)
      assert.is_true(math.abs(records[1].time - os.time()) < 100)
      assert.matches("app%.job%[" .. pid .. "%]: got 7 x", records[1].line)
    end))

    it("bears the context of who handed the task in", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local function job(name)
        local logger = require "opero".get_logger("app")
        logger:info(name)
        logger:add_context { of = name }
        require "opero".spawn(function() logger:info(name) end):await()
      end
      local function check(name, expected)
        local found = 0
        for _, record in ipairs(records) do
          if record.message == name then
            found = found + 1
            assert.same(expected, record.fields)
            expected.of = name
          end
        end
        assert.equal(2, found)
      end
      pool:call(job, "none")
      log:add_context { request = 1, user = { name = "ann" } }
      pool:call(job, "call")
      local submitted = opero.log_context(log, { batch = 7 }, pool.submit, pool, job, "submit")
      log:add_context { request = 2 }
      submitted:await()
      pool:call(job, "later")
      pool:map(job, { "map" })
      opero.log_context(log, { step = "imap" }, function()
        for _ in pool:imap(job, { "imap" }) do
          opero.yield()
        end
      end)
      check("none", {})
      check("call", { request = 1, user = { name = "ann" } })
      check("submit", { request = 1, user = { name = "ann" }, batch = 7 })
      check("later", { request = 2, user = { name = "ann" } })
      check("map", { request = 2, user = { name = "ann" } })
      check("imap", { request = 2, user = { name = "ann" }, step = "imap" })
    end))

    it("bears the right context when tasks of many move between workers", task(function()
      local pool <close> = new_pool { max_workers = 2, tasks_per_worker = 3 }
      opero.scope(function(scope)
        for i = 1, 60 do
          scope:spawn(function()
            log:add_context { i = i }
            for j = 1, 3 do
              pool:call(function(n)
                if n % 7 == 0 then
                  require "opero".sleep(0.002)
                end
                require "opero".get_logger("app"):info("%d", n)
              end, i * 10 + j)
            end
          end)
        end
      end)
      assert.equal(180, #records)
      for _, record in ipairs(records) do
        assert.equal(tonumber(record.message) // 10, record.fields.i)
      end
    end))

    it("has the correlation id of the execution", task(function()
      local pool <close> = new_pool()
      local orch = opero.Orchestrator {
        multiprocess_config = pool, retry_config = { wait_min = 0, wait_max = 0 },
      }
      local function job(fails)
        local lib = require "opero"
        lib.get_logger("app"):info("attempt")
        if fails then
          error(lib.correlation_id(), 0)
        end
        return lib.correlation_id()
      end
      local _, id = orch:try(job, true)
      local other = orch:execute(job, false)
      assert.equal(16, #id)
      assert.not_equal(id, other)
      assert.equal(4, #records)
      for i, record in ipairs(records) do
        assert.equal(i < 4 and id or other, record.fields.correlation_id)
      end
    end))

    it("arrives in its order, however much it is", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local count = support.is_sanitized and 2000 or 20000
      local first = pool:submit(function(n)
        local logger = require "opero".get_logger("app.one")
        for i = 1, n do
          logger:info("%d", i, { text = ("x"):rep(i % 300) })
        end
        return n
      end, count)
      pool:call(function(n)
        local logger = require "opero".get_logger("app.two")
        for i = 1, n // 10 do
          logger:info("%d", i)
        end
      end, count)
      assert.equal(count, (first:await()))
      local seen = { ["app.one"] = 0, ["app.two"] = 0 }
      for _, record in ipairs(records) do
        seen[record.logger] = seen[record.logger] + 1
        assert.equal(seen[record.logger], tonumber(record.message))
      end
      assert.same({ ["app.one"] = count, ["app.two"] = count // 10 }, seen)
    end))

    it("comes before what follows in this process", task(function()
      local pool <close> = new_pool()
      for i = 1, 50 do
        pool:call(function(n) require "opero".get_logger("app"):info("%d", n) end, 2 * i)
        log:info("%d", 2 * i + 1)
      end
      for i, record in ipairs(records) do
        assert.equal(i + 1, tonumber(record.message))
      end
      assert.equal(100, #records)
    end))

    it("does not get in the way of large results", task(function()
      local pool <close> = new_pool { tasks_per_worker = 4 }
      local results = pool:map(function(n)
        local lib = require "opero"
        local logger = lib.get_logger("app")
        for i = 1, 100 do
          logger:info("%d %s", i, ("y"):rep(500))
          if i % 10 == 0 then
            lib.yield()
          end
        end
        return ("x"):rep(n * 100000)
      end, numbers(12), { chunk_size = 3 })
      for i = 1, 12 do
        assert.equal(i * 100000, #results[i])
      end
      assert.equal(1200, #records)
    end))

    it("is cut, not lost, when it is too large to be sent", task(function()
      local pool <close> = new_pool()
      log:add_context { wide = ("w"):rep(8000) }
      pool:call(function()
        local fields = {}
        for i = 1, 90 do
          fields["field" .. i] = ("z"):rep(8000)
        end
        require "opero".get_logger("app"):info(("m"):rep(100000), fields)
        require "opero".get_logger("app"):info("small")
      end)
      assert.equal(2, #records)
      assert.matches("^mmmm.*bytes more%)$", records[1].message)
      assert.equal(("w"):rep(8000), records[2].fields.wide)
    end))

    it("is at the levels of this process, also when they change", task(function()
      local pool <close> = new_pool()
      local function job(name)
        local logger = require "opero".get_logger("app.level")
        for _, level in ipairs { "debug", "info", "warning", "error" } do
          logger:log(level, name)
        end
        return logger:level()
      end
      local function counted(name)
        local level, count = pool:call(job, name), 0
        for _, record in ipairs(records) do
          count = count + (record.message == name and 1 or 0)
        end
        return count, level
      end
      assert.same({ 4, "debug" }, { counted("a") })
      opero.get_logger("app"):set_level("warning")
      assert.same({ 2, "warning" }, { counted("b") })
      opero.get_logger("app.level"):set_level("error")
      assert.same({ 1, "error" }, { counted("c") })
      opero.get_logger("app.level"):set_level()
      opero.get_logger("app"):set_level()
      assert.same({ 4, "debug" }, { counted("d") })
      local more = {}
      opero.configure_logging { sinks = { {
        output = function(_, record) more[#more + 1] = record.level end, level = "error",
      } } }
      pool:call(job, "e") -- where no output takes it, nothing is sent
      assert.same({ "error" }, more)
    end))

    it("can be configured there, but for outputs", task(function()
      local pool <close> = new_pool()
      pool:call(function()
        local lib = require "opero"
        lib.configure_logging { level = "error", output = { file = "/nonexistent/file" } }
        lib.get_logger("app"):info("quiet")
        lib.get_logger("app"):error("loud")
      end)
      assert.same({ "loud" }, log_support.messages(records))
    end))

    it("is masked", task(function()
      opero.configure_logging {
        redact = { "password" }, output = function(line) records[#records + 1] = line end,
      }
      local pool <close> = new_pool()
      log:add_context { password = "one" }
      pool:call(function()
        require "opero".get_logger("app"):info("%s", { password = "two" }, {
          deep = { { Password = "three" } },
        })
      end)
      assert.matches(
        ': {"password":"%*%*%*"}  password=%*%*%* deep=%[{"Password":"%*%*%*"}%]$', records[1])
    end))

    it("during init arrives, and what a worker logs before it dies", task(function()
      local pool <close> = new_pool {
        max_workers = 1,
        init = function() require "opero".get_logger("app"):info("init") end,
      }
      for i = 1, 20 do
        pcall(pool.call, pool, function(n)
          local logger = require "opero".get_logger("app")
          for j = 1, n do
            logger:info("%d", j)
          end
          require "posix.signal".kill(require "posix.unistd".getpid(), 9)
        end, i)
      end
      local at = 0
      for i = 1, 20 do
        at = at + 1
        assert.equal("init", records[at].message)
        for j = 1, i do
          at = at + 1
          assert.equal(j, tonumber(records[at].message))
        end
      end
      assert.equal(at, #records)
    end))

    it("arrives as far as it got when workers are killed at any moment", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local killing = opero.spawn(function()
        for i = 1, 30 do
          opero.sleep(0.003)
          local pids = pool:stats().pids
          if pids[1] then
            signal.kill(pids[1 + i % #pids], signal.SIGKILL)
          end
        end
      end)
      local tasks = {}
      for i = 1, 200 do
        tasks[i] = pool:submit(function(n)
          local logger = require "opero".get_logger("app")
          for j = 1, 40 do
            logger:info("%d", n * 100 + j, { text = ("t"):rep(j * 20) })
          end
          return n
        end, i)
      end
      local counts = {}
      for i = 1, 200 do
        local ok, result = pcall(tasks[i].await, tasks[i])
        if ok then
          assert.equal(i, result)
          counts[i] = 40
        end
      end
      killing:await()
      local seen = {}
      for _, record in ipairs(records) do
        if record.logger == "app" then
          local n, j = tonumber(record.message) // 100, tonumber(record.message) % 100
          seen[n] = (seen[n] or 0) + 1
          assert.equal(seen[n], j)
          assert.equal(("t"):rep(j * 20), record.fields.text)
        end
      end
      for n, count in pairs(counts) do
        assert.equal(count, seen[n])
      end
    end))

    it("comes from workers of workers too", task(function()
      local pool <close> = new_pool()
      log:add_context { request = 1 }
      local pid = pool:call(function(kind)
        local inner <close> = require "opero".Pool { max_workers = 1, backend = kind }
        return inner:call(function()
          require "opero".get_logger("app"):info("deep")
          return require "posix.unistd".getpid()
        end)
      end, backend)
      assert.equal(1, #records)
      assert.equal(pid, records[1].pid)
      assert.same({ request = 1 }, records[1].fields)
    end))

    it("is at changed levels in workers of workers too", task(function()
      local pool <close> = new_pool()
      local function levels(kind)
        local lib = require "opero"
        local inner = rawget(_G, "inner_pool") or lib.Pool { max_workers = 1, backend = kind }
        rawset(_G, "inner_pool", inner)
        return lib.get_logger("app"):level(), inner:call(function()
          return require "opero".get_logger("app"):level()
        end)
      end
      opero.get_logger("app"):set_level("warning")
      assert.same({ "warning", "warning" }, { pool:call(levels, backend) })
      opero.get_logger("app"):set_level("error")
      assert.same({ "error", "error" }, { pool:call(levels, backend) })
      pool:call(function() rawget(_G, "inner_pool"):close() end)
    end))

    it("has the correlation id though its context is too long to be sent", task(function()
      local pool <close> = new_pool()
      for i = 1, 12 do
        log:add_context { ["long" .. i] = ("c"):rep(8000) }
      end
      log:add_context { short = 1, correlation_id = "request 7" }
      pool:call(function() require "opero".get_logger("app"):info("here") end)
      assert.equal("request 7", records[1].fields.correlation_id)
      assert.equal(1, records[1].fields.short)
      assert.equal("(too long to be sent)", records[1].fields.long9)
    end))

    it("does not keep a task that is cancelled while it logs from cleaning up", task(function()
      local pool <close> = new_pool()
      local path = support.file()
      for round = 1, 5 do
        local running = pool:submit(function(file, n)
          local logger = require "opero".get_logger("app")
          local value = setmetatable({}, {
            __tostring = function()
              local text = ""
              for i = 1, 100 do
                text = text .. i
              end
              return text
            end,
          })
          local _ <close> = setmetatable({}, { __close = function()
            require "spec.pool.support".note(file, "closed")
          end })
          require "spec.pool.support".note(file, "begun")
          while n do
            logger:debug("%s", value)
          end
        end, path, round)
        support.wait_for(path, 2 * round - 1)
        running:cancel()
        pcall(running.await, running)
        support.wait_for(path, 2 * round)
      end
    end))

    it("goes to stderr from a process that a task has forked", task(function()
      local pool <close> = new_pool()
      pool:call(function()
        local unix, wait = require "posix.unistd", require "posix.sys.wait"
        require "opero".get_logger("app"):info("before")
        local child = unix.fork()
        if child == 0 then
          unix.dup2(require "posix.fcntl".open("/dev/null", 1), 2)
          require "opero".get_logger("app"):info("in between")
          unix._exit(0)
        end
        wait.wait(child)
        require "opero".get_logger("app"):info("after")
      end)
      assert.same({ "before", "after" }, log_support.messages(records))
    end))
  end)

  describe("of pools of backend " .. backend .. " the library", function()
    local records

    before_each(function()
      records = log_support.record { levels = { opero = "debug" } }
    end)

    after_each(function()
      log_support.restore()
      support.clean_up()
    end)

    it("tells of workers that start, crash, are replaced and end", task(function()
      local pids = {}
      do
        local pool <close> = support.pool(backend, { max_workers = 1 })
        pids[1] = pool:call(unistd.getpid)
        pcall(pool.call, pool, os.exit, 3)
        pids[2] = pool:call(unistd.getpid)
        signal.kill(pids[2], signal.SIGTERM)
        support.eventually(function() return pool:stats().crashed == 2 end)
        pids[3] = pool:call(unistd.getpid)
      end
      opero.yield()
      local said = {}
      for i, record in ipairs(records) do
        assert.equal("opero", record.logger)
        assert.is_nil(record.pid)
        said[i] = ("%s %s"):format(record.level, record.message)
      end
      assert.same({
        "debug worker started", "warning worker crashed",
        "debug worker started", "info worker replaced", "warning worker crashed",
        "debug worker started", "info worker replaced", "debug worker ended",
      }, said)
      assert.same({ pid = pids[1] }, records[1].fields)
      assert.same({ pid = pids[1], status = 3, tasks = 1 }, records[2].fields)
      assert.same({ pid = pids[2], signal = signal.SIGTERM, tasks = 0 }, records[5].fields)
      assert.same({ pid = pids[3] }, records[8].fields)
    end))

    it("tells of tasks that took too long", task(function()
      local pool <close> = support.pool(backend, { max_workers = 1, task_timeout = 0.05 })
      pcall(pool.call, pool, function() while true do end end) -- luacheck: ignore 542
      support.eventually(function() return pool:stats().workers == 0 end)
      opero.yield()
      assert.equal("worker killed: a task took too long", records[2].message)
      assert.equal("info", records[2].level)
    end))
  end)
end
