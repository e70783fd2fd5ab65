-- Many items through a pool: map and imap.

-- luacheck: ignore 512 (a loop that is left at once is what some of these are about)
local opero = require "opero"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"

local eventually, raised, raised_class = support.eventually, support.raised, support.raised_class
local task = support.task

local function square(x) return x * x end
local function echo(...) return ... end

local function fails_at_3(x)
  if x == 3 then
    error("bad", 0)
  end
  return x
end

local function range(n)
  local list = {}
  for i = 1, n do
    list[i] = i
  end
  return list
end

-- An iterator over 1 to n, or without end; `state.read` is how far it was read.
local function counting(n)
  local state = { read = 0, calls = 0 }
  return function()
    state.calls = state.calls + 1
    if state.read < (n or math.huge) then
      state.read = state.read + 1
      return state.read
    end
  end, state
end

-- The results of an imap, its errors, and the places they had.
local function collected(...)
  local results, failures, indexes = {}, {}, {}
  for result, err, index in ... do
    results[#results + 1] = result
    failures[#results] = err
    indexes[#indexes + 1] = index
  end
  return results, failures, indexes
end

support.each_backend(function(backend)
  local function new_pool(options)
    return support.pool(backend, options)
  end

  describe("map over backend " .. backend, function()
    after_each(support.clean_up)

    it("says of every item that the pool was closed before it had gone out", task(function()
      local pool = new_pool { max_workers = 1 }
      local mapping = opero.spawn(pool.map, pool, function(x)
        opero.sleep(0.005)
        return x
      end, range(60), { on_error = "collect", chunk_size = 1 })
      eventually(function() return pool:stats().completed > 2 end)
      pool:close()
      local results, failures = mapping:await()
      for i = 1, 60 do
        assert.is_true(results[i] == i or failures[i].name == "ClosedError")
      end
      assert.is_truthy(results[1])
      assert.is_truthy(failures[60])
    end))

    it("says of every item that its function cannot be had over there", task(function()
      local name = "pool_spec_only_here_" .. backend
      local only_here = { double = function(x) return 2 * x end }
      package.loaded[name] = only_here
      local _ <close> = support.closing(function() package.loaded[name] = nil end)
      -- a spawned worker cannot load the module; a forked one has it
      local pool <close> = new_pool()
      local results, errors = pool:map(function(x) return only_here.double(x) end, range(20),
        { on_error = "collect" })
      for i = 1, 20 do
        if backend == "fork" then
          assert.equal(2 * i, results[i])
        else
          assert.equal("SerializationError", errors[i].name)
          assert.matches(name, errors[i].message, 1, true)
        end
      end
      assert.equal(9, pool:map(square, { 3 })[1])
    end))

    it("returns the first results in the order of the items", task(function()
      local pool <close> = new_pool()
      assert.same({ n = 20, table.unpack(support.squares(20)) }, (pool:map(function(x)
        opero.sleep((20 - x) * 0.0005)
        return x * x, "more"
      end, range(20))))
    end))

    it("calls the function in workers, with the item alone", task(function()
      local pool <close> = new_pool()
      local results = pool:map(function(...)
        return { unistd.getpid(), select("#", ...) }
      end, { 1, 2, 3 })
      for i = 1, 3 do
        assert.not_equal(unistd.getpid(), results[i][1])
        assert.equal(1, results[i][2])
      end
    end))

    it("takes lists with holes, and empty ones", task(function()
      local pool <close> = new_pool()
      assert.same({ n = 4, nil, 2, nil, nil }, (pool:map(echo, { nil, 2, n = 4 })))
      assert.same({ n = 1, 1 }, (pool:map(echo, { 1, 2, 3, n = 1 })))
      assert.same({ n = 3 }, (pool:map(function() end, { 1, 2, 3 })))
      assert.same({ n = 2, false, true }, (pool:map(echo, { false, true })))
      assert.same({ n = 0 }, (pool:map(echo, {})))
      assert.same({ n = 0 }, (pool:map(echo, function() end)))
      local results, failures = pool:map(echo, {}, { on_error = "collect" })
      assert.same({ { n = 0 }, { n = 0 } }, { results, failures })
    end))

    it("takes an iterator, and calls it no more once it has returned nil", task(function()
      local pool <close> = new_pool()
      local iterate, state = counting(50)
      assert.same({ n = 50, table.unpack(support.squares(50)) }, (pool:map(square, iterate)))
      assert.equal(51, state.calls)
      assert.same({ n = 3, "a", "b", "c" }, (pool:map(echo, ("a b c"):gmatch("%a"))))
      local slow = counting(3)
      assert.same({ n = 3, 1, 2, 3 }, (pool:map(echo, function()
        opero.sleep(0.002)
        return slow()
      end)))
    end))

    it("raises the error of an iterator, and the pool goes on", task(function()
      local pool <close> = new_pool()
      local reason = { "no more lines" }
      local iterate, state = counting()
      assert.equal(reason, raised(pool.map, pool, echo, function()
        return state.read == 5 and error(reason) or iterate()
      end))
      support.until_unemployed(pool)
      assert.equal(4, pool:call(square, 2))
    end))

    it("raises the first failure with its place, and cancels the rest", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local log, items = support.file(), {}
      for i = 1, 100 do
        items[i] = { number = i }
      end
      local err = raised_class("ItemError", pool.map, pool, function(item)
        support.note(log, item.number)
        opero.sleep(0.002)
        if item.number == 2 then
          error({ "cause" })
        end
      end, items)
      assert.equal(2, err.index)
      assert.equal(items[2], err.item)
      assert.same({ "cause" }, err.cause)
      support.until_unemployed(pool)
      local begun = #support.lines(log)
      assert.is_true(begun < 100)
      assert.equal(4, pool:call(square, 2))
      assert.equal(begun, #support.lines(log))
    end))

    it("counts nil and an error as a failure", task(function()
      local pool <close> = new_pool()
      local err = raised_class("ItemError", pool.map, pool, function(x)
        if x == 2 then
          return nil, "no such thing"
        end
      end, { 1, 2 })
      assert.same({ 2, 2, "no such thing" }, { err.index, err.item, err.cause })
    end))

    it("collects the errors, each at its place", task(function()
      local pool <close> = new_pool()
      for _, chunk_size in ipairs { false, 1, 2, 3, 100 } do
        local results, failures = pool:map(function(x)
          if x % 4 == 0 then
            return nil, "divisible by 4"
          elseif x % 7 == 0 then
            error({ x }, 0)
          end
          return x
        end, range(10), { on_error = "collect", chunk_size = chunk_size or nil })
        assert.same({ n = 10, 1, 2, 3, nil, 5, 6, nil, nil, 9, 10 }, results)
        assert.same({ n = 10, nil, nil, nil, "divisible by 4", nil, nil, { 7 },
          "divisible by 4", nil, nil }, failures)
      end
    end))

    it("gives the same with chunks of any size", task(function()
      local pool <close> = new_pool()
      local squares = support.squares(100)
      squares.n = 100
      for _, chunk_size in ipairs { 1, 2, 7, 99, 100, 101, 100000 } do
        assert.same(squares, (pool:map(square, range(100), { chunk_size = chunk_size })))
        local err = raised_class("ItemError", pool.map, pool, fails_at_3, range(100),
          { chunk_size = chunk_size })
        assert.same({ 3, 3, "bad" }, { err.index, err.item, err.cause })
        local iterate = counting(100)
        assert.same(squares, (pool:map(square, iterate, { chunk_size = chunk_size })))
      end
    end))

    it("is done with 100,000 small items in a moment", task(function()
      local pool <close> = new_pool()
      local results = pool:map(function(x) return x + 1 end, range(100000))
      assert.equal(100000, results.n)
      for i = 1, 100000 do
        if results[i] ~= i + 1 then
          error(("item %d gave %s"):format(i, results[i]))
        end
      end
    end))

    it("does not keep items waiting behind a slow one", task(function()
      local pool <close> = new_pool()
      for _, case in ipairs {
        { count = 100, slow = 1 }, { count = 100, slow = 1, chunk_size = 1 },
        { count = 1000, slow = 500 }, -- by then it knows that the items are quick
      } do
        local log = support.file()
        local results = pool:map(function(i)
          if i == case.slow then
            support.wait_for(log, case.count - 1)
          else
            support.note(log, i)
          end
          return i * i
        end, range(case.count), { chunk_size = case.chunk_size })
        assert.same({ n = case.count, table.unpack(support.squares(case.count)) }, results)
        assert.equal(case.count - 1, #support.lines(log))
      end
    end))

    it("is cancelled with what it has begun", task(function()
      local pool <close> = new_pool()
      raised_class("TimeoutError", opero.timeout, 0.05, pool.map, pool, support.wait_for,
        { support.file(), support.file(), support.file(), support.file() })
      support.until_unemployed(pool)
      assert.equal(4, pool:call(square, 2))
    end))
  end)

  describe("imap over backend " .. backend, function()
    after_each(support.clean_up)

    it("gives the results in order, with their places", task(function()
      local pool <close> = new_pool()
      for _, chunk_size in ipairs { false, 1, 3, 100 } do
        local results, failures, indexes = collected(pool:imap(function(x)
          opero.sleep(x % 5 * 0.001)
          return x * x, "more"
        end, range(20), { chunk_size = chunk_size or nil }))
        assert.same({ support.squares(20), {}, range(20) }, { results, failures, indexes })
      end
      assert.same({ "a", "b" }, (collected(pool:imap(echo, ("a b"):gmatch("%a")))))
      assert.same({}, (collected(pool:imap(echo, {}))))
    end))

    it("gives false for nil", task(function()
      local pool <close> = new_pool()
      local results, failures = collected(pool:imap(echo, { nil, 2, false, n = 4 }))
      assert.same({ { false, 2, false, false }, {} }, { results, failures })
    end))

    it("gives the results as they come when they need not be in order", task(function()
      local pool <close> = new_pool()
      local gate, seen = support.file(), {}
      for result, _, index in pool:imap(function(x)
        if x == 1 then
          support.wait_for(gate)
        end
        return x * x
      end, range(6), { ordered = false, chunk_size = 1 }) do
        assert.equal(index * index, result)
        seen[#seen + 1] = index
        if #seen == 5 then
          support.open(gate)
        end
      end
      assert.equal(1, table.remove(seen))
      table.sort(seen)
      assert.same({ 2, 3, 4, 5, 6 }, seen)
    end))

    it("raises a failure when its turn has come", task(function()
      local pool <close> = new_pool()
      local seen = {}
      local err = raised_class("ItemError", function()
        for result in pool:imap(fails_at_3, range(10)) do
          seen[#seen + 1] = result
        end
      end)
      assert.same({ 3, 3, "bad" }, { err.index, err.item, err.cause })
      assert.same({ 1, 2 }, seen)
      support.until_unemployed(pool)
    end))

    it("collects the errors", task(function()
      local pool <close> = new_pool()
      for _, options in ipairs { {}, { chunk_size = 2 } } do
        options.on_error = "collect"
        local results, failures, indexes = collected(pool:imap(fails_at_3, range(5), options))
        assert.same({ 1, 2, false, 4, 5 }, results)
        assert.same({ [3] = "bad" }, failures)
        assert.same(range(5), indexes)
      end
    end))

    it("reads no more than max_in_flight items ahead", task(function()
      local pool <close> = new_pool()
      for _, options in ipairs { { max_in_flight = 1 }, { max_in_flight = 4 },
        { max_in_flight = 4, chunk_size = 3 }, { max_in_flight = 2, chunk_size = 50 } } do
        local iterate, state = counting(20)
        local seen = 0
        for result in pool:imap(square, iterate, options) do
          opero.sleep(0.001) -- for the workers to get as far as they may
          seen = seen + 1
          assert.equal(seen * seen, result)
          assert.is_true(state.read <= seen + options.max_in_flight)
        end
        assert.equal(20, seen)
      end
    end))

    it("goes over items without end, in memory that does not grow", task(function()
      local pool <close> = new_pool()
      local iterate, state = counting()
      local seen, before = 0, nil
      for result in pool:imap(function(x)
        return ("%d "):format(x):rep(30)
      end, iterate) do
        seen = seen + 1
        if seen % 15000 == 5000 then
          collectgarbage()
          before = before or collectgarbage("count")
          assert.is_true(collectgarbage("count") < before + 4096)
        elseif seen == 50001 then
          assert.equal("50001 ", result:sub(1, 6))
          break
        end
      end
      assert.is_true(state.read >= 50001)
    end))

    it("cancels what is in flight when the loop is left", task(function()
      local pool <close> = new_pool()
      for _, leave in ipairs { "break", "error" } do
        local gate = support.file()
        local iterate, state = counting()
        local ok, err = pcall(function()
          for result in pool:imap(function(x)
            return x == 1 and x or support.wait_for(gate)
          end, iterate, { max_in_flight = 8 }) do
            assert.equal(1, result)
            if leave == "break" then
              break
            end
            error("out of here", 0)
          end
        end)
        assert.same(leave == "error" and { false, "out of here" } or { true }, { ok, err })
        support.until_unemployed(pool)
        assert.is_true(state.read <= 9)
        local read = state.read
        assert.equal(4, pool:call(square, 2))
        assert.equal(read, state.read)
      end
    end))

    it("does not keep items waiting behind a slow one", task(function()
      local pool <close> = new_pool()
      local log = support.file()
      local results = collected(pool:imap(function(i)
        if i == 1 then
          support.wait_for(log, 99)
        else
          support.note(log, i)
        end
        return i
      end, range(100), { max_in_flight = 100 }))
      assert.same(range(100), results)
    end))
  end)

  describe("a pool of backend " .. backend, function()
    it("serves several maps and other calls at once", task(function()
      local pool <close> = new_pool()
      local squares = support.squares(300)
      local all = opero.all {
        function() return pool:map(square, range(300)) end,
        function() return pool:map(square, counting(300), { chunk_size = 5 }) end,
        function() return collected(pool:imap(square, range(300))) end,
        function() return collected(pool:imap(square, counting(300), { chunk_size = 1 })) end,
        function() return pool:call(square, 11) end,
        pool:submit(square, 12),
      }
      assert.same({ n = 6, { n = 300, table.unpack(squares) }, { n = 300, table.unpack(squares) },
        squares, squares, 121, 144 }, all)
    end))

    it("maps in the main chunk", function()
      local pool <close> = new_pool()
      assert.same({ n = 3, 1, 4, 9 }, (pool:map(square, { 1, 2, 3 })))
      assert.same({ 1, 4, 9 }, (collected(pool:imap(square, { 1, 2, 3 }))))
      raised_class("ItemError", pool.map, pool, fails_at_3, range(10))
      eventually(function() return pool:stats().running == 0 end)
    end)
  end)
end)
