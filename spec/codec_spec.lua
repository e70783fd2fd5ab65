local core = require "opero.core"
local errors = require "opero.errors"
local opero = require "opero"
local runtime_support = require "spec.runtime.support"
local support = require "spec.support"
local values = require "spec.fuzz.values"

local encode, encode_with, decode = core.encode, core.encode_with, core.decode
local unpack = table.unpack

local WITH_CODE = { functions = true }

--- What arrives when these are sent by one who is trusted.
local function sent(...)
  return decode(encode(...), WITH_CODE)
end

--- The message of the SerializationError that fn raises.
local function refused(fn, ...)
  local err = support.raised(fn, ...)
  if not errors.is(err, errors.SerializationError) then
    error("expected a SerializationError, got " .. tostring(err), 2)
  end
  return err.message
end

local function contains(text, part)
  assert(text:find(part, 1, true), ("%q is not in %q"):format(part, text))
end

local function bits(number)
  return string.pack("n", number)
end

describe("the codec", function()
  it("carries any number of values, nil among them", function()
    assert.same({ n = 0 }, table.pack(sent()))
    assert.same({ n = 4, nil, true, false, nil }, table.pack(sent(nil, true, false, nil)))
    for _, count in ipairs { 1, 254, 255, 256, 5000 } do
      local list = {}
      for i = 1, count do
        list[i] = i
      end
      assert.same(list, { sent(unpack(list)) })
    end
  end)

  it("carries integers as integers, of every width", function()
    for shift = 0, 63 do
      for _, near in ipairs { -1, 0, 1 } do
        for _, number in ipairs { (1 << shift) + near, -(1 << shift) + near } do
          local result = sent(number)
          assert.equal(number, result)
          assert.equal("integer", math.type(result))
        end
      end
    end
  end)

  it("carries floats as floats, bit by bit", function()
    local numbers = { 0.0, -0.0, 1.0, -1.5, 1 / 0, -1 / 0, 0 / 0, -(0 / 0), 5e-324, 2 ^ 63,
      string.unpack("n", string.pack("j", 0x7ff8000000000abc)),
      (string.unpack("n", string.pack("j", 0xfff800000badcafe))) }
    for _, number in ipairs(numbers) do
      local result = sent(number)
      assert.equal(bits(number), bits(result))
      assert.equal("float", math.type(result))
    end
  end)

  it("carries strings of every length and with any bytes", function()
    local all = {}
    for byte = 0, 255 do
      all[byte + 1] = string.char(byte)
    end
    assert.equal(table.concat(all), (sent(table.concat(all))))
    for _, length in ipairs { 0, 1, 40, 41, 63, 64, 65, 255, 256, 257, 65535, 65536, 3000000 } do
      local text = ("x\0y"):rep(length // 3) .. ("z"):rep(length % 3)
      assert.equal(text, (sent(text)))
    end
  end)

  it("carries a string of 100 MB", function()
    local text = ("0123456789"):rep(10000000)
    assert.is_true(text == sent(text))
    local message, segments = encode_with({}, text)
    assert.equal(1, segments)
    assert.is_true(text == decode(message))
  end)

  it("carries tables of every form", function()
    for _, value in ipairs {
      {}, { 1 }, { 1, 2, 3 }, { [2] = 2 }, { nil, nil, 3 }, { 1, nil, 3 }, { a = 1 }, { 1, a = 2 },
      { [0] = 0, 1, 2 }, { [-1] = 1, [1.5] = 2, [true] = 3, [false] = 4, [""] = 5 }, { { {} }, {} },
      { [math.mininteger] = 1, [math.maxinteger] = 2, [1 / 0] = 3 }, { n = 0 },
    } do
      assert.is_true(values.alike(value, (sent(value))))
    end
    local backwards, sparse = {}, {}
    for i = 100, 1, -1 do
      backwards[i] = i
    end
    for i = 0, 62 do
      sparse[1 << i] = i
    end
    assert.same(backwards, (sent(backwards)))
    assert.same(sparse, (sent(sparse)))
  end)

  it("carries large tables", function()
    local list, map = {}, {}
    for i = 1, 70000 do
      list[i] = i * 3
      map["key" .. i] = i
    end
    local list_again, map_again = sent(list, map)
    assert.is_true(values.alike(list, list_again))
    assert.is_true(values.alike(map, map_again))
  end)

  it("keeps what is shared shared, in one value and across those of a message", function()
    local shared, loop = { 1 }, {}
    loop.loop, loop[loop] = loop, loop
    local a, b, c = sent({ shared, { shared } }, shared, loop)
    assert.equal(a[1], a[2][1])
    assert.equal(a[1], b)
    assert.not_equal(shared, b)
    assert.equal(c, c.loop)
    assert.equal(c, c[c])
    local text = ("x"):rep(1000)
    assert.is_true(#encode({ text, text, text }) < 1100)
  end)

  it("carries tables that are keys", function()
    local key = { name = "key" }
    local result = sent({ [key] = { key }, list = { [{}] = {} } })
    local again = next(result) == "list" and next(result, "list") or next(result)
    assert.equal("key", again.name)
    assert.equal(again, result[again][1])
    local inner_key, inner = next(result.list)
    assert.same({ {}, {} }, { inner_key, inner })
    assert.not_equal(inner_key, inner)
  end)

  it("carries anything that is made of these", function()
    local generator = values.generator(7)
    for i = 1, 2500 do
      local value = generator.value()
      if not values.alike(value, (sent(value))) then
        error("value " .. i .. " does not come out as it went in")
      end
    end
  end)

  it("carries what is nested a million levels deep", function()
    local value = {}
    for i = 1, 1000000 do
      value = i % 2 == 0 and { value } or { v = value, i }
    end
    local result = decode(encode(value))
    local depth = 0
    while next(result) do
      result = result.v or result[1]
      depth = depth + 1
    end
    assert.equal(1000000, depth)
  end)

  it("carries keys and functions that are nested deep", function()
    local key, fn = {}, function() return 0 end
    for _ = 1, 1000 do
      key = { [key] = true, { key } }
      local inner = fn
      fn = function() return inner() + 1 end
    end
    key, fn = sent(key, fn)
    assert.equal(1000, fn())
    local depth = 0
    while key[1] do
      local inner = key[1][1]
      assert.is_true(key[inner])
      key, depth = inner, depth + 1
    end
    assert.equal(1000, depth)
  end)

  it("does not call metamethods of its own classes or of the strings", function()
    local class = errors.class("Picky")
    class.__newindex, class.__len = error, error
    local object = setmetatable({ a = 1, 2 }, class)
    assert.equal(1, rawget(sent(object), "a"))
  end)
end)

describe("functions in the codec", function()
  it("take their upvalues along", function()
    local text, list, none = "x", { 1, 2 }, nil
    local fn = sent(function(more) return text, list[2], none, more end)
    assert.same({ n = 4, "x", 2, nil, 3 }, table.pack(fn(3)))
  end)

  it("share upvalues as before", function()
    local count = 0
    local function step() count = count + 1 end
    local function get() return count end
    local other_step, other = sent(step, { get = get })
    other_step()
    other_step()
    assert.equal(2, other.get())
    assert.equal(0, count)
  end)

  it("may call themselves and each other", function()
    local function factorial(n) return n < 2 and 1 or n * factorial(n - 1) end
    local is_odd
    local function is_even(n) return n == 0 or is_odd(n - 1) end
    function is_odd(n) return n ~= 0 and is_even(n - 1) end
    assert.equal(120, sent(factorial)(5))
    assert.is_true(sent(is_even)(10))
    local again = sent(factorial)
    local _, inner = debug.getupvalue(again, 1)
    assert.equal(again, inner)
  end)

  it("share an upvalue that is met while its own value is on the way", function()
    local holder
    local function reader() return holder.mark end
    holder = { reader = reader, mark = 1 }
    local again, again_holder = sent(reader, holder)
    again_holder.mark = 5
    assert.equal(5, again())
    assert.equal(again, again_holder.reader)
  end)

  it("have the globals of where they arrive", function()
    local fn = sent(function() return _G, _ENV, print end)
    local globals, environment, printer = fn()
    assert.equal(_G, globals)
    assert.equal(_G, environment)
    assert.equal(print, printer)
    assert.equal(_G, (sent(_G)))
  end)

  it("keep an environment of their own", function()
    local fn = assert(load("x = x + 1 return x", "=own", "t", { x = 1 }))
    assert.equal(2, sent(fn)())
    assert.equal(2, fn())
  end)

  it("keep their debug information", function()
    local fn = function() error("here") end
    local line = debug.getinfo(fn, "S").linedefined
    assert.equal(line, debug.getinfo(sent(fn), "S").linedefined)
    contains(support.raised(sent(fn)), "codec_spec.lua:" .. line .. ": here")
  end)

  it("may have 255 upvalues, or none", function()
    local names, numbers = {}, {}
    for i = 1, 254 do -- and one of the function around it
      numbers[i] = i
    end
    for i = 1, 127 do
      names[i] = "v" .. i
    end
    local source = ("local %s = ...; local t = {...} return function() return %s end"):format(
      table.concat(names, ","), table.concat(names, "+"))
    local fn = assert(load(source))(unpack(numbers))
    assert.equal(127 * 64, sent(fn)())
    assert.equal(3, sent(assert(load("local a = 3 return function() return 3 end"))())())
  end)

  it("come as what they are when they are known by no name", function()
    local fn = function() end
    assert.not_equal(fn, (sent(fn)))
    _G.codec_spec_global = fn
    assert.not_equal(fn, (sent(fn))) -- a fresh worker has no such global
    _G.codec_spec_global = nil
  end)

  it("are one function when they are sent twice in a message", function()
    local fn = function() end
    local a, b = sent(fn, { fn })
    assert.equal(a, b[1])
  end)
end)

describe("names in the codec", function()
  after_each(function()
    package.loaded["codec_spec.made_up"] = nil
    package.preload["codec_spec.made_up"] = nil
  end)

  it("carry loaded modules, their functions, and userdata in them", function()
    local all = { string, string.format, print, opero, opero.sleep, core.await, opero.errors,
      errors.is, io.stdout, coroutine.wrap, require, _G }
    for i, value in ipairs(all) do
      assert.equal(value, (sent(value)), "number " .. i)
    end
    local fn = sent(function() return opero, string.rep("x", 2), opero.sleep end)
    local module, text, sleep = fn()
    assert.equal(opero, module)
    assert.equal("xx", text)
    assert.equal(opero.sleep, sleep)
  end)

  it("carry light userdata that are fields of a module", function()
    local has_cjson, cjson = pcall(require, "cjson")
    if not has_cjson then
      return pending("lua-cjson is not installed")
    end
    assert.equal(cjson.null, sent({ cjson.null, { cjson.null } })[2][1])
  end)

  it("see modules that are loaded and fields that are set later", function()
    local module = { data = {}, fn = function() end, from_c = coroutine.wrap(print) }
    package.loaded["codec_spec.made_up"] = module
    assert.equal(module, (sent(module)))
    assert.equal(module.fn, (sent(module.fn)))
    assert.equal(module.from_c, (sent(module.from_c)))
    module.later = coroutine.wrap(print)
    assert.equal(module.later, (sent(module.later)))
    local old = module.later
    module.later = nil
    contains(refused(encode, old), "is a C function that is no field of a loaded module")
  end)

  it("carry a module that is a function, or has a metatable", function()
    package.loaded["codec_spec.made_up"] = function() end
    assert.equal(package.loaded["codec_spec.made_up"], (sent(package.loaded["codec_spec.made_up"])))
    package.loaded["codec_spec.made_up"] = setmetatable({}, { __index = error })
    assert.equal(package.loaded["codec_spec.made_up"], (sent(package.loaded["codec_spec.made_up"])))
  end)

  it("load a module that is not loaded yet, where code is accepted", function()
    local old = { fn = function() end }
    package.loaded["codec_spec.made_up"] = old
    local whole, field = encode(old), encode(old.fn)
    package.loaded["codec_spec.made_up"] = nil
    contains(refused(decode, whole),
      "module 'codec_spec.made_up' is not loaded here, and no code is accepted")
    contains(refused(decode, whole, WITH_CODE),
      "module 'codec_spec.made_up' cannot be loaded here: module 'codec_spec.made_up' not found")
    local fresh = {}
    package.preload["codec_spec.made_up"] = function() return fresh end
    assert.equal(fresh, (decode(whole, WITH_CODE)))
    assert.equal("module 'codec_spec.made_up' has no field 'fn' here",
      refused(decode, field, WITH_CODE))
    fresh.fn = function() end
    assert.equal(fresh.fn, (decode(field, WITH_CODE)))
  end)

  it("pass on why a module does not load", function()
    local reason = { "broken" }
    local old = { fn = function() end }
    package.loaded["codec_spec.made_up"] = old
    local whole = encode(old)
    package.loaded["codec_spec.made_up"] = nil
    package.preload["codec_spec.made_up"] = function() error(reason) end
    assert.equal(reason, support.raised(decode, whole, WITH_CODE).cause)
  end)

  it("carry functions and tables the other side is known to have", function()
    local fn, list, thread = function() end, {}, coroutine.create(print)
    local known = { [fn] = 0, [list] = 70000, [thread] = 3 }
    local message = encode_with({ known = known }, { fn, list, thread }, fn)
    assert.is_true(#message < 40)
    local ids = { [0] = "the function", [70000] = "the list", [3] = "the thread" }
    local a, b = decode(message, { known = ids })
    assert.same({ "the function", "the list", "the thread" }, a)
    assert.equal("the function", b)
    contains(refused(decode, message), "it has a value that should be known here")
    contains(refused(decode, message, { known = {} }), "it has a value that should be known here")
  end)
end)

describe("classes in the codec", function()
  it("carry errors with all they have", function()
    local Refused = errors.class("Refused", errors.TimeoutError)
    local cause = Refused("inner", { retry_after = 2 })
    local err = errors.RetryError("outer", { cause = cause, attempts = 3, list = { cause } })
    local result = decode(encode(err)) -- there is no code in it
    assert.equal(errors.RetryError, getmetatable(result))
    assert.equal(tostring(err), tostring(result))
    assert.equal(err.traceback, result.traceback)
    assert.equal(3, result.attempts)
    assert.equal(Refused, getmetatable(result.cause))
    assert.is_true(errors.is(result.cause, errors.TimeoutError))
    assert.equal(2, result.cause.retry_after)
    assert.equal(result.cause, result.list[1])
  end)

  it("are carried by name themselves", function()
    assert.equal(errors.TimeoutError, (decode(encode(errors.TimeoutError))))
    local Refused = errors.class("Refused")
    local fn = sent(function() return Refused("x") end)
    assert.equal(Refused, getmetatable(fn()))
  end)

  it("are kept apart when they have one name", function()
    local first, second = errors.class("Twin"), errors.class("Twin")
    local a, b = sent(first("a"), second("b"))
    assert.equal(first, getmetatable(a))
    assert.equal(second, getmetatable(b))
  end)

  it("may be any metatable that is registered", function()
    local Point = { __name = "Point" }
    Point.__index = Point
    local point = setmetatable({ x = 1, y = 2 }, Point)
    contains(refused(encode, point), "(Point)")
    core.register_class("spec.Point", Point)
    local result = decode(encode(point))
    assert.equal(Point, getmetatable(result))
    assert.same({ x = 1, y = 2 }, result)
    assert.has_error(function() core.register_class("spec.Point", Point) end)
    assert.has_error(function() core.register_class("spec.Point2", {}, {}) end)
  end)

  it("that nobody knows are stood in for, and come back home as themselves", function()
    -- a root of this spec's own: the classes of Opero are made anew for each spec, so here they are
    -- not the first of their names
    local Root = errors.class("AwayRoot", errors.TimeoutError)
    local Base = errors.class("AwayBase", Root)
    local Away = errors.class("Away", Base)
    local message = encode(Away("far", { n = 1 }), Away)
    local output = runtime_support.output_of(([[
      local opero, core = require "opero", require "opero.core"
      local Root = opero.errors.class("AwayRoot", opero.errors.TimeoutError)
      local e, class = core.decode(%q)
      print(tostring(e), opero.errors.is(e, opero.errors.TimeoutError), getmetatable(e) == class,
        e.n, class.parent.name, class.parent.parent == Root)
      local again = core.encode(e, class("made there"))
      print((again:gsub(".", function(c) return ("%%02x"):format(c:byte()) end)))
      local Away = opero.errors.class("Away", Root)
      print(getmetatable(core.decode(%q)) == Away, getmetatable(e) ~= Away)
    ]]):format(message, message))
    local shown, hex, last = output:match("^(.-)\n(.-)\n(.-)\n$")
    assert.equal("Away: far\ttrue\ttrue\t1\tAwayBase\ttrue", shown)
    assert.equal("true\ttrue", last)
    local back, made = decode((hex:gsub("..", function(pair)
      return string.char(tonumber(pair, 16))
    end)))
    assert.equal(Away, getmetatable(back))
    assert.equal(Away, getmetatable(made))
    assert.equal("made there", made.message)
    assert.equal("far", back.message)
  end)

  it("that nobody knows and that have no base are refused", function()
    local message
    do
      local Lost = {}
      core.register_class("spec.Lost", Lost)
      message = encode(setmetatable({}, Lost))
    end
    collectgarbage()
    collectgarbage()
    assert.equal("there is no class 'spec.Lost' here", refused(decode, message))
  end)

  it("can be collected", function()
    local weak = setmetatable({}, { __mode = "k" })
    weak[errors.class("Fleeting")] = true
    encode({})
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(weak))
  end)
end)

describe("what cannot travel", function()
  local thread = coroutine.create(print)
  local file

  setup(function()
    file = io.tmpfile()
  end)
  teardown(function()
    file:close()
  end)

  local function here(fn)
    local info = debug.getinfo(fn, "S")
    return info.short_src .. ":" .. info.linedefined
  end

  it("is refused with the path to it", function()
    local options = { what = "argument", leads_with_function = true }
    local function told(...)
      return refused(encode_with, options, ...)
    end
    local db = file
    local function uses() return db end
    local key = { [thread] = 1 }
    assert.equal(("upvalue 'db' of function at %s is userdata (FILE*)"):format(here(uses)),
      told(uses))
    assert.equal("argument 1: field 'conns'[3].handle is a thread",
      told(print, { conns = { 1, 2, { handle = thread } } }))
    assert.equal("argument 2 is a thread", told(print, 1, thread))
    assert.equal("value 2 is a thread", refused(encode, 1, thread))
    assert.equal("the function is a C function that is no field of a loaded module",
      told(coroutine.wrap(print)))
    assert.equal("argument 1: a key is a thread", told(print, key))
    assert.equal("argument 1: field [1]: a key is userdata (FILE*)",
      told(print, { { [file] = 1 } }))
    assert.equal("argument 1: field [1]: a key: field 'x' is a thread",
      told(print, { { [{ x = thread }] = 1 } }))
    assert.equal(("argument 1: field 'uses': upvalue 'db' of function at %s is userdata (FILE*)")
      :format(here(uses)), told(print, { uses = uses }))
    assert.equal("argument 1: field [true]['a b'][1.5][a table].x is a thread",
      told(print, { [true] = { ["a b"] = { [1.5] = { [{}] = { x = thread } } } } }))
    local tables = { list = { thread } }
    local function nested() return tables end
    assert.equal(("upvalue 'tables' of function at %s: field 'list'[1] is a thread")
      :format(here(nested)), told(nested))
    assert.equal("argument 1 is a table whose metatable is not that of a registered class",
      told(print, setmetatable({}, {})))
    assert.equal("argument 1: field [2] is a table whose metatable is not that of a registered "
      .. "class (Thing)", told(print, { 1, setmetatable({}, { __name = "Thing" }) }))
    local main = assert(load("return x", "=chunk", "t", { x = file }))
    assert.equal("upvalue '_ENV' of main chunk of chunk: field 'x' is userdata (FILE*)", told(main))
  end)

  it("is found deep inside, and shown in short", function()
    local value = thread
    for i = 1, 500 do
      value = { i, v = value }
    end
    assert.equal("value 1: field 'v'.v.v.v.v.v ... .v.v.v.v.v.v is a thread",
      refused(encode, value))
    assert.equal("value 1: field '" .. ("k"):rep(40) .. "...' is a thread",
      refused(encode, { [("k"):rep(5000)] = thread }))
    assert.equal("value 1: field 'a?b' is a thread", refused(encode, { ["a\nb"] = thread }))
  end)

  it("leaves nothing behind", function()
    local ok = { 1, 2, 3 }
    for _ = 1, 3 do
      refused(encode, { ok, thread })
      assert.same(ok, (sent(ok)))
    end
  end)
end)

describe("long strings", function()
  it("need not be copied into the message", function()
    local long, longer = ("a"):rep(70000), ("b"):rep(80000)
    local shared = {}
    local message, segments = encode_with({}, long, { longer, shared, long, shared }, "x", longer)
    assert.equal(2, segments)
    local a, b, c, d = decode(message)
    assert.is_true(a == long and b[1] == longer and b[3] == long and c == "x" and d == longer)
    assert.equal(b[2], b[4])
    assert.is_true(message == encode(long, { longer, shared, long, shared }, "x", longer))
  end)

  it("are those from a length on that can be chosen", function()
    local _, segments = encode_with({ segment_min = 300 }, ("x"):rep(300), ("y"):rep(299))
    assert.equal(1, segments)
  end)
end)

describe("decoding what cannot be trusted", function()
  it("takes no code unless it is told to", function()
    local no_code = "the message has a function, and none are accepted here"
    assert.equal(no_code, refused(decode, encode(function() end)))
    assert.equal(no_code, refused(decode, encode(print)))
    assert.equal(no_code, refused(decode, encode({ { f = function() end } })))
  end)

  it("refuses code that was damaged before Lua sees it", function()
    local message = encode(function() return "some text" end)
    local at = message:find("some text", 1, true)
    message = message:sub(1, at - 1) .. "S" .. message:sub(at + 1)
    contains(refused(decode, message, WITH_CODE), "it has a function that was damaged")
  end)

  it("says what is wrong, and where", function()
    assert.equal("malformed message: it is cut short, at byte 0 of 0", refused(decode, ""))
    assert.equal("malformed message: it is of another version, at byte 1 of 1",
      refused(decode, "\0"))
    assert.equal("malformed message: it goes on after its end, at byte 3 of 4",
      refused(decode, encode(1) .. "x"))
    local message = encode({ a = 1 })
    for length = 0, #message - 1 do
      contains(refused(decode, message:sub(1, length)), "malformed message: ")
    end
  end)

  it("allocates no more than the message can hold", function()
    -- Tables in tables, each of which promises as many values as there are bytes.
    local table_tag = encode({ 1 }):byte(3) -- elements and pairs
    local depth <const> = 20000
    local parts = { encode(1):sub(1, 2) }
    for i = 1, depth do
      parts[i + 1] = string.pack("=BI4I4", table_tag, (depth - i) * 9, 0)
    end
    collectgarbage()
    local before = collectgarbage("count")
    local peak = 0
    local ok = pcall(decode, table.concat(parts))
    peak = math.max(peak, collectgarbage("count") - before)
    assert.is_false(ok)
    assert.is_true(peak < 20000) -- KiB, for a message of 180,000 bytes
    contains(refused(decode, encode(1):sub(1, 1) .. "\xff\xff\xff\xff\xff"), "it promises more")
  end)

  it("has nothing against deep nesting that is never closed", function()
    local tag = encode({ 1 }):byte(3)
    local open = string.pack("=BI4I4", tag, 1, 0)
    contains(refused(decode, encode(1):sub(1, 2) .. open:rep(300000)), "malformed message: ")
  end)

  it("ends in an error or in a value, whatever is done to a message", function()
    local Refused = errors.class("Refused")
    local shared = { 1 }
    local function recursive(n) return n > 0 and recursive(n - 1) or shared end
    local generator = values.generator(11, {
      function() return print end,
      function() return string end,
      function() return Refused end,
      function() return setmetatable({ 1, x = shared }, Refused) end,
      function() return recursive end,
      function() return function() return shared, recursive end end,
      function() return _G end,
      function() return shared end,
    })
    local int = generator.int
    local options = { { functions = true }, { functions = false },
      { functions = true, known = {} } }
    local total, refusals = 0, 0
    local original_require, searched = require, 0
    local function try(message)
      total = total + 1
      local ok, err = pcall(decode, message, options[total % 3 + 1])
      if not ok then
        refusals = refusals + 1
        if err ~= "SerializationError" then
          error(("%s for %q"):format(tostring(err), message), 0)
        end
      end
    end
    -- An error with its traceback would take ten times as long as what is tested here.
    core.set_error_factory(function(class_name, ...)
      return class_name == "SerializationError" and class_name or errors.make(class_name, ...)
    end)
    -- Names that were changed are not searched for on disk.
    rawset(_G, "require", function(name)
      searched = searched + 1
      error("no module " .. name, 0)
    end)
    local messages = 0
    local ok, err = pcall(function()
      while messages < 400 or total < 210000 do
        local message = encode(generator.value(2), generator.value(1))
        if #message <= 900 then
          messages = messages + 1
          -- every place of a short message, some of a long one
          local step = #message // 150 + 1
          for at = 1 + messages % step, #message, step do
            local byte = message:byte(at)
            local before, after = message:sub(1, at - 1), message:sub(at + 1)
            try(before)
            try(before .. after)
            try(before .. string.char(byte ~ (1 << int(0, 7))) .. after)
            try(before .. string.char(int(0, 255)) .. after)
            try(before .. "\xff" .. after)
            try(before .. string.char(int(0, 36)) .. after)
            try(before .. string.char(byte, int(0, 255)) .. after)
          end
        end
      end
    end)
    rawset(_G, "require", original_require)
    core.set_error_factory(errors.make)
    assert(ok, err)
    assert.is_true(total >= 200000 and refusals > total / 4 and searched > 0)
  end)
end)
