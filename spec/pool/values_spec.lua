-- What travels to the workers of a pool and back, and what does not.

local errors = require "opero.errors"
local opero = require "opero"
local signal = require "posix.signal"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"
local values = require "spec.fuzz.values"

local raised, raised_class, task = support.raised, support.raised_class, support.task

local function square(x) return x * x end
local function echo(...) return ... end

local function here(fn)
  local info = debug.getinfo(fn, "S")
  return info.short_src .. ":" .. info.linedefined
end

-- The message of the SerializationError that fn raises.
local function refused(fn, ...)
  return raised_class("SerializationError", fn, ...).message
end

support.each_backend(function(backend)
  local function new_pool(options)
    return support.pool(backend, options)
  end

  -- Nothing was begun or sent, and the pool works.
  local function check_unharmed(pool)
    assert.same({ workers = 0, idle = 0, busy = 0, queued = 0, running = 0, completed = 0,
      failed = 0, crashed = 0, started = 0 }, support.counts(pool))
    assert.equal(49, pool:call(square, 7))
  end

  -- The one worker that there was did what it could, and goes on.
  local function check_same_worker(pool)
    assert.equal(49, pool:call(square, 7))
    assert.same({ 1, 0 }, { pool:stats().started, pool:stats().crashed })
  end

  describe("to workers of backend " .. backend .. " and back", function()
    it("travel values of every kind", task(function()
      local pool <close> = new_pool()
      local generator = values.generator(17)
      for i = 1, 300 do
        local a, b = generator.value(), generator.value()
        local results = table.pack(pool:call(echo, a, nil, b))
        if not (results.n == 3 and results[2] == nil and values.alike(a, results[1])
          and values.alike(b, results[3])) then
          error("values " .. i .. " do not come back as they went")
        end
      end
    end))

    it("travel integers as integers and floats as floats", function()
      local pool <close> = new_pool()
      local function kinds(...)
        local list = table.pack(...)
        for i = 1, list.n do
          list[i] = math.type(list[i])
        end
        return table.concat(list, " "), ...
      end
      local told, a, b, c = pool:call(kinds, 3, 3.0, math.mininteger)
      assert.equal("integer float integer", told)
      assert.equal("integer float integer", (kinds(a, b, c)))
      assert.equal(math.mininteger, c)
    end)

    it("travels what is shared, and what contains itself", function()
      local pool <close> = new_pool()
      local shared, loop = { 1 }, {}
      loop.loop = loop
      local a, b, c, is_shared = pool:call(function(list, same, ring)
        return list, same, ring, list[1] == same and list[2] == same and ring.loop == ring
      end, { shared, shared }, shared, loop)
      assert.is_true(is_shared)
      assert.equal(a[1], a[2])
      assert.equal(a[1], b)
      assert.equal(c, c.loop)
      assert.not_equal(shared, b)
    end)

    it("travels a string of 100 MB", task(function()
      local pool <close> = new_pool()
      local text = ("0123456789"):rep(10000000)
      local length, result = pool:call(function(argument)
        return #argument, argument
      end, text)
      assert.equal(#text, length)
      assert.is_true(text == result)
    end))

    it("travel many large values, and others have their turns meanwhile", task(function()
      local pool <close> = new_pool()
      local ticks, left = 0, 24
      for i = 1, left do
        opero.spawn(function()
          local text = string.char(96 + i):rep(4 << 20)
          assert.is_true(text == pool:call(echo, text))
          left = left - 1
        end)
      end
      while left > 0 do
        opero.sleep(0.001)
        ticks = ticks + 1
      end
      assert.is_true(ticks > 5, ticks .. " ticks")
    end))

    it("may wait for a worker that does not read, and others have their turns", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local pid = pool:call(unistd.getpid)
      signal.kill(pid, signal.SIGSTOP)
      local text, many = ("x"):rep(20 << 20), {}
      local large = pool:submit(string.len, text)
      for i = 1, 5000 do
        many[i] = pool:submit(square, i)
      end
      for _ = 1, 20 do
        opero.sleep(0.001)
      end
      assert.equal("suspended", large:status())
      signal.kill(pid, signal.SIGCONT)
      assert.equal(20 << 20, large:await())
      for i = 1, 5000 do
        assert.equal(i * i, many[i]:await())
      end
    end))
  end)

  describe("functions for workers of backend " .. backend, function()
    it("take their upvalues along", function()
      local pool <close> = new_pool()
      local text, list, none = "x", { 1, { 2 } }, nil
      local fn = function(more) return text, list[2][1], none, more end
      assert.same({ n = 4, "x", 2, nil, 3 }, table.pack(pool:call(fn, 3)))
    end)

    it("change nothing here", function()
      local pool <close> = new_pool()
      local count, list = 0, {}
      assert.equal(1, pool:call(function(argument)
        count = count + 1
        list[1], argument[1] = "changed", "changed"
        return count
      end, list))
      assert.equal(0, count)
      assert.same({}, list)
    end)

    it("share upvalues with those that travel with them", function()
      local pool <close> = new_pool()
      local count = 0
      local function step() count = count + 1 end
      local function get() return count end
      assert.equal(2, pool:call(function(first, more)
        first()
        more[1]()
        return more.get()
      end, step, { step, get = get }))
      assert.equal(0, count)
    end)

    it("may call themselves and each other", function()
      local pool <close> = new_pool()
      local function factorial(n) return n < 2 and 1 or n * factorial(n - 1) end
      local is_odd
      local function is_even(n) return n == 0 or is_odd(n - 1) end
      function is_odd(n) return n ~= 0 and is_even(n - 1) end
      assert.equal(3628800, pool:call(factorial, 10))
      assert.same({ true, false }, { pool:call(is_even, 10), (pool:call(is_even, 7)) })
    end)

    it("find modules and their functions by name, and the globals of the worker", function()
      local pool <close> = new_pool()
      local pack = string.pack
      assert.same({ unistd.getcwd(), pack("<i4", 5), true, "opero.Task" },
        { pool:call(function(rep)
          return unistd.getcwd(), pack("<i4", 5), rep == string.rep and _G.string.rep == rep,
            debug.getmetatable(opero.current()).__name
        end, string.rep) })
      assert.equal("abab", pool:call(string.rep, "ab", 2))
      assert.equal(7, pool:call(math.max, 1, 7, 3))
    end)

    it("may be met again in the same worker, and new ones too", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local function twice(fn, x) return fn(fn(x)) end
      for i = 1, 50 do
        local function add(x) return x + i end
        assert.equal(2 * i, pool:call(twice, add, 0))
        assert.equal(i + 1, pool:call(add, 1))
      end
      assert.equal(1, pool:stats().started)
    end))

    it("may make errors of classes that are newer than the worker", function()
      local pool <close> = new_pool { max_workers = 1 }
      pool:call(square, 1)
      local Late = errors.class("PoolLate", errors.TimeoutError)
      local err = raised(pool.call, pool, function(given)
        error(Late("too late", { was_one = errors.is(given, errors.TimeoutError), given = given }))
      end, Late("given"))
      assert.equal(Late, getmetatable(err))
      assert.equal(Late, getmetatable(err.given))
      assert.same({ "too late", true, "given" }, { err.message, err.was_one, err.given.message })
      assert.equal(1, pool:stats().started)
    end)
  end)

  describe("what cannot travel to workers of backend " .. backend, function()
    local file

    before_each(function()
      file = io.tmpfile()
    end)
    after_each(function()
      file:close()
      support.clean_up()
    end)

    it("is refused before anything is sent, with the path to it", function()
      local pool <close> = new_pool()
      local db = file
      local function uses() return db end
      local thread = coroutine.create(print)
      assert.equal("argument 1: field 'conns'[1] is userdata (FILE*)",
        refused(pool.submit, pool, square, { conns = { file } }))
      assert.equal("argument 2 is a thread", refused(pool.submit, pool, square, 1, thread))
      assert.equal("argument 2 is a thread", refused(pool.call, pool, square, 1, thread))
      assert.equal(("argument 1: upvalue 'db' of function at %s is userdata (FILE*)")
        :format(here(uses)), refused(pool.call, pool, square, uses))
      assert.equal("argument 1 is a table whose metatable is not that of a registered class "
        .. "(Thing)", refused(pool.call, pool, square, setmetatable({}, { __name = "Thing" })))
      check_unharmed(pool)
    end)

    it("is refused in tasks too, and no task is left", task(function()
      local pool <close> = new_pool()
      local before = #opero.tasks()
      refused(pool.submit, pool, square, file)
      assert.equal(before, #opero.tasks())
      check_unharmed(pool)
    end))

    it("fails the item of a map that it is", task(function()
      local pool <close> = new_pool()
      local results, failures = pool:map(type, { 1, file, "x" }, { on_error = "collect" })
      assert.same({ n = 3, "number", nil, "string" }, results)
      assert.equal("SerializationError", failures[2].name)
      local err = raised_class("ItemError", pool.map, pool, type, { 1, file, "x" })
      assert.same({ 2, "SerializationError" }, { err.index, err.cause.name })
      assert.equal(file, err.item)
      support.until_unemployed(pool)
      assert.equal(49, pool:call(square, 7))
    end))

    if backend == "fork" then
      it("is inherited as an upvalue, of a function that is new to the workers as well",
        task(function()
          local pool <close> = new_pool()
          local db = file
          local account = setmetatable({ balance = 5 }, { __index = { currency = "EUR" } })
          local function first(x)
            return io.type(db), account.currency, x
          end
          assert.same({ "file", "EUR", 7 }, { pool:call(first, 7) })
          local function second(x)
            return db and account.balance + x
          end
          assert.equal(6, pool:call(second, 1))
          assert.equal(7, pool:submit(second, 2):await())
          assert.same({ n = 3, 6, 7, 8 }, (pool:map(second, { 1, 2, 3 })))
          local function third(x)
            return account.currency .. x
          end
          assert.same({ n = 3, "EUR1", "EUR2", "EUR3" }, (pool:map(third, { 1, 2, 3 })))
          assert.same({ "file", "EUR", 8 }, { pool:call(first, 8) })
          assert.equal(0, pool:stats().crashed)
        end))

      it("is inherited while all workers are busy with other things", task(function()
        local pool <close> = new_pool { max_workers = 1 }
        local gate, db = support.file(), file
        local busy = pool:submit(support.wait_for, gate)
        support.until_running(pool, 1)
        local inheriting = pool:submit(function() return io.type(db) end)
        local after = pool:submit(square, 3)
        opero.sleep(0.005)
        assert.equal("suspended", inheriting:status())
        support.open(gate)
        assert.same({ "open", "file", 9 }, { busy:await(), inheriting:await(), (after:await()) })
        assert.equal(0, pool:stats().crashed)
      end))
    else
      it("is refused as an upvalue", function()
        local pool <close> = new_pool()
        local db = file
        local function uses() return db end
        local message = ("upvalue 'db' of function at %s is userdata (FILE*)"):format(here(uses))
        assert.equal(message, refused(pool.submit, pool, uses))
        assert.equal(message, refused(pool.call, pool, uses))
        check_unharmed(pool)
        raised(pool.map, pool, uses, { 1, 2 })
        assert.equal(49, pool:call(square, 7))
      end)
    end
  end)

  describe("what cannot travel from workers of backend " .. backend, function()
    it("is an error of the task whose result it is", function()
      local pool <close> = new_pool { max_workers = 1 }
      assert.equal("result 2 is a thread", refused(pool.call, pool, function()
        return 1, coroutine.create(print)
      end))
      assert.equal("result 1: field 'log'.file is userdata (FILE*)",
        refused(pool.call, pool, function()
          return { log = { file = io.tmpfile() } }
        end))
      check_same_worker(pool)
    end)

    it("is an error of the item whose result it is", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local results, failures = pool:map(function(x)
        return x == 2 and coroutine.create(print) or x
      end, { 1, 2, 3 }, { on_error = "collect" })
      assert.same({ n = 3, 1, nil, 3 }, results)
      assert.equal("SerializationError", failures[2].name)
      check_same_worker(pool)
    end))

    it("is said of an error in its stead", function()
      local pool <close> = new_pool { max_workers = 1 }
      local err = raised(pool.call, pool, function()
        error(setmetatable({}, { __tostring = function() return "the disk is full" end }))
      end)
      assert.matches("the disk is full", tostring(err), 1, true)
      assert.is_truthy(raised(pool.call, pool, function()
        error(errors.TimeoutError("x", { thread = coroutine.create(print) }))
      end))
      check_same_worker(pool)
    end)

    it("is a function, unless they are accepted", function()
      local pool <close> = new_pool { max_workers = 1 }
      assert.equal(unistd, (pool:call(function() return unistd end)))
      for _, fn in ipairs {
        function() return string.rep end,
        function() return function() end end,
        function() return { nested = { square } } end,
      } do
        refused(pool.call, pool, fn)
      end
      check_same_worker(pool)
    end)

    it("is told with the path to it", function()
      local pool <close> = new_pool { max_workers = 1 }
      assert.matches("result 1: field 'list'[2] is a function", raised(pool.call, pool, function()
        return { list = { 1, string.rep } }
      end).message, 1, true)
      local err = raised(pool.call, pool, function()
        error(errors.OperoError("the disk is full", { handler = print }))
      end)
      assert.matches("the disk is full", tostring(err), 1, true)
    end)

    it("is none where functions are accepted", function()
      local pool <close> = new_pool { max_workers = 1, accept_functions = true }
      local rep, cube, nested = pool:call(function()
        return string.rep, function(x) return x * square(x) end, { square }
      end)
      assert.equal(string.rep, rep)
      assert.equal(27, cube(3))
      assert.equal(16, nested[1](4))
    end)

    it("is a module that was not loaded here", function()
      local pool <close> = new_pool { max_workers = 1 }
      refused(pool.call, pool, function()
        local made_up = { fn = function() end }
        package.loaded["pool_spec.made_up"] = made_up
        return made_up
      end)
      assert.is_nil(package.loaded["pool_spec.made_up"])
      check_same_worker(pool)
    end)
  end)
end)
