-- What a record says: the message, which is made from a format and its arguments, and the fields.

local errors = require "opero.errors"
local log_support = require "spec.logging.support"
local opero = require "opero"
local support = require "spec.support"
local values = require "spec.fuzz.values"

local messages = log_support.messages

local STRING_MAX <const> = 8192
local MESSAGE_MAX <const> = 16384
local NAME_MAX <const> = 200
local ENTRIES_MAX <const> = 100

-- A value that tostring shows as what fn returns.
local function shown_by(fn, name)
  return setmetatable({}, { __tostring = fn, __name = name })
end

-- Whether string.format knows the directive, and takes that value.
local function is_taken(spec, value)
  return (pcall(string.format, spec, value))
end

describe("a record", function()
  local records, log

  before_each(function()
    records = log_support.record { level = "debug", format = "plain" }
    log = opero.get_logger "app"
  end)

  after_each(log_support.restore)

  -- Logs that; returns the message and the fields of the record, which must be the only one.
  local function said(...)
    local before = #records
    log:info(...)
    assert.equal(before + 1, #records)
    return records[#records].message, records[#records].fields
  end

  describe("has a message with string.format's directives:", function()
    -- What each takes: flags, a precision, and values made from random numbers.
    local function integer(int)
      local bits = int(0, 62)
      local value = int(0, (1 << bits) - 1)
      return int(0, 1) == 0 and value or -value
    end

    local function float(int)
      local choice = int(1, 12)
      if choice <= 3 then
        return ({ 0.0, -0.0, 1e308 })[choice]
      elseif choice == 4 then
        return ({ 1 / 0, -1 / 0, 0 / 0, 5e-324, math.pi, 1e15 })[int(1, 6)]
      elseif choice == 5 then
        return integer(int)
      end
      return (int(0, 1) == 0 and 1 or -1) * int(1, 10 ^ 9) * 10.0 ^ int(-30, 30)
    end

    local function text(int)
      local bytes = {}
      for i = 1, int(0, int(1, 10) == 1 and 300 or 20) do
        bytes[i] = string.char(int(1, 255))
      end
      return table.concat(bytes)
    end

    local function any(int)
      return ({
        text(int), integer(int), true, false, tostring(integer(int)), print, io.stdout,
        coroutine.create(print), errors.OperoError(text(int)),
        shown_by(function() return "shown" end),
      })[int(1, 10)]
    end

    local integers = { flags = "-+ 0", precision = true, value = integer }
    local naturals = { flags = "-0", precision = true, value = integer }
    local hexadecimals = { flags = "-#0", precision = true, value = integer }
    local floats = { flags = "-+ #0", precision = true, value = float }
    local takes = {
      d = integers, i = integers, u = naturals, o = hexadecimals, x = hexadecimals,
      X = hexadecimals, a = floats, A = floats, e = floats, E = floats, f = floats, g = floats,
      G = floats,
      c = { value = function(int) return int(0, 255) end },
      s = { flags = "-", precision = true, value = any },
    }
    local letters = {}
    for letter in pairs(takes) do
      letters[#letters + 1] = letter
    end
    table.sort(letters)

    local function directive(int, letter)
      local taken, parts = takes[letter], { "%" }
      if taken.flags and int(1, 4) > 1 then
        for _ = 1, int(0, 2) do
          local flag = int(1, #taken.flags)
          parts[#parts + 1] = taken.flags:sub(flag, flag)
        end
        parts[#parts + 1] = int(1, 2) == 1 and int(1, 99) or ""
        if taken.precision and int(1, 2) == 1 then
          parts[#parts + 1] = "." .. (int(1, 4) == 1 and "" or int(0, 99))
        end
      end
      parts[#parts + 1] = letter
      return table.concat(parts)
    end

    for _, letter in ipairs(letters) do
      it("%" .. letter, function()
        local int = values.generator(letter:byte()).int
        local compared = 0
        for _ = 1, 500 do
          local spec, value = directive(int, letter), takes[letter].value(int)
          if is_taken(spec, value) then -- which flags go together depends on the version of Lua
            compared = compared + 1
            assert.equal(spec:format(value), (said(spec, value)))
          end
        end
        assert.is_true(compared > 250)
      end)
    end

    it("many in one format, with text between", function()
      local int = values.generator(1).int
      for _ = 1, 500 do
        local parts, arguments = {}, { n = 0 }
        for _ = 1, int(1, 12) do
          local letter = letters[int(1, #letters)]
          local spec, value = directive(int, letter), takes[letter].value(int)
          if is_taken(spec, value) then
            parts[#parts + 1] = spec
            arguments.n = arguments.n + 1
            arguments[arguments.n] = value
          end
          parts[#parts + 1] = ({ "%%", " ", "text", "ü", "\n", "" })[int(1, 6)]
        end
        local format = table.concat(parts)
        assert.equal(format:format(table.unpack(arguments, 1, arguments.n)),
          (said(format, table.unpack(arguments, 1, arguments.n))))
      end
    end)

    it("%c with a width", function()
      for _, spec in ipairs { "[%5c]", "[%-5c]", "[%1c]" } do
        assert.equal(spec:format(65), (said(spec, 65)))
      end
    end)

    it("%p, an address", function()
      for _, value in ipairs { {}, print, io.stdout, "text", 5, true, errors.OperoError "x" } do
        assert.equal(("%p"):format(value), (said("%p", value)))
        assert.equal(("[%20p]"):format(value), (said("[%20p]", value)))
      end
      assert.equal(("%p"):format(nil), (said("%p", nil)))
    end)

    it("%q, which has JSON's escapes", function()
      assert.equal([["plain" "a \"b\" \\" "\n\u0000ü" 5 true nil]],
        (said("%q %q %q %q %q %q", "plain", [[a "b" \]], "\n\0ü", 5, true, nil)))
    end)

    it("strings with zeros", function()
      assert.equal("a\0b", (said("%s", "a\0b")))
      assert.equal("[  a\0b]", (said("[%5s]", "a\0b")))
      assert.equal("[a\0]", (said("[%.2s]", "a\0b")))
      assert.equal("a\0b 5", (said("a\0b %d", 5)))
    end)

    it("the longest there are", function()
      for _, spec in ipairs { "%99.99f", "%-99.99f", "%+.99e", "%099d", "%.99d", "%99.99s" } do
        local value = spec:find("s", 1, true) and ("x"):rep(300)
          or spec:find("d", 1, true) and math.mininteger or -1.7976931348623157e308
        assert.equal(spec:format(value), (said(spec, value)))
      end
    end)

    it("integers for floats and strings that are integers, and the other way round", function()
      for _, case in ipairs {
        { "%d", 3.0 }, { "%d", "10" }, { "%x", "0x1F" }, { "%i", -0.0 }, { "%5d|", "7" },
        { "%c", "65" }, { "%f", 3 }, { "%.1f", "2.25" }, { "%g", "1e3" }, { "%d", 2 ^ 53 },
      } do
        assert.equal(case[1]:format(case[2]), (said(case[1], case[2])))
      end
    end)

    it("%s shows floats as fields do, so that they can be read back", function()
      for _, case in ipairs {
        { 1.5, "1.5" }, { 1 / 3, "0.3333333333333333" }, { 1e14, "100000000000000.0" },
        { 1e15, "1e+15" },
        { 2.0, "2.0" }, { -0.0, "-0.0" }, { 1e300, "1e+300" }, { 1 / 0, "Infinity" },
        { -1 / 0, "-Infinity" }, { 0 / 0, "NaN" },
      } do
        assert.equal(case[2], (said("%s", case[1])))
        assert.equal("m " .. case[2], (said("m", case[1])))
      end
    end)
  end)

  describe("is made whatever the arguments are:", function()
    it("one of a wrong type is shown as it is", function()
      for _, case in ipairs {
        { "%d", "two", "two" }, { "%d", 2.5, "2.5" }, { "%d", true, "true" },
        { "%5d", "two", "two" }, { "%d", 1e300, "1e+300" }, { "%d", 0 / 0, "NaN" },
        { "%d", { 1, 2 }, "[1,2]" }, { "%x", "xyz", "xyz" }, { "%c", "x", "x" },
        { "%c", {}, "{}" }, { "%f", "one", "one" }, { "%.2f", false, "false" },
        { "%g", { a = 1 }, '{"a":1}' }, { "%d", errors.OperoError "no", "OperoError: no" },
        { "%q", { 1 }, "[1]" }, { "%o", "", "" },
      } do
        assert.equal(("<%s>"):format(case[3]), (said(("<%s>"):format(case[1]), case[2])))
      end
      assert.equal("nil nil nil", (said("%d %s %f", nil, nil, nil)))
    end)

    it("a directive without one stays as it is", function()
      assert.equal("1 %s", (said("%s %s", 1)))
      assert.equal("a 1 %d %-5s", (said("%s %d %d %-5s", "a", 1)))
      assert.equal("1 % %5.1f %%s", (said("%d %% %5.1f %%%s", 1)))
    end)

    it("too many are appended", function()
      assert.equal("a 1 true nil x", (said("a", 1, true, nil, "x")))
      assert.equal("1: 2 3.5", (said("%d:", 1, 2, 3.5)))
      assert.equal("a nil nil", (said("a", nil, nil)))
      assert.equal('a {"b":1} 2', (said("a", { b = 1 }, 2)))
      assert.equal("a OperoError: no", (said("a", errors.OperoError "no")))
    end)

    it("hundreds of them", function()
      local many, expected = {}, {}
      for i = 1, 240 do
        many[i], expected[i] = i, tostring(i)
      end
      assert.equal("n " .. table.concat(expected, " "), (said("n", table.unpack(many))))
      assert.equal(table.concat(expected, ","),
        (said(("%d"):rep(240, ","), table.unpack(many))))
    end)

    it("what is no directive stays", function()
      for _, format in ipairs {
        "%", "100%", "%y", "%5y", "% ", "%.", "%5.2", "%123d", "%1.123f", "%-", "%\0d", "%5\0d",
        "%%", "%%%", "a%", "%z %w", "%*d", "%ld", "%n", "%$", "%1$s",
      } do
        local text = format:gsub("%%%%", "%%")
        assert.equal(text, (said(format)))
        assert.equal(text .. " 5", (said(format, 5)))
      end
    end)

    it("%n, as C has it, writes nowhere", function()
      assert.equal("%n%n 1 2", (said("%n%n", 1, 2)))
    end)
  end)

  describe("without arguments", function()
    it("says what the format is, but for %%", function()
      assert.equal("100% sure", (said "100% sure"))
      assert.equal("100% sure", (said "100%% sure"))
      assert.equal("%s %d %5.2f", (said "%s %d %5.2f"))
      assert.equal("%s", (said "%%s"))
      assert.equal("", (said ""))
    end)

    it("and without a message says nothing", function()
      assert.equal("", (said()))
      assert.equal("app: ", records[1].line)
    end)

    it("may be of any type", function()
      assert.equal("nil", (said(nil)))
      assert.equal("5", (said(5)))
      assert.equal("0.1", (said(0.1)))
      assert.equal("false", (said(false)))
      assert.equal("[1,[2]]", (said { 1, { 2 } }))
      assert.equal('{"a":{"b":"c"}}', (said { a = { b = "c" } }))
      assert.equal(tostring(print), (said(print)))
      assert.equal(tostring(io.stdout), (said(io.stdout)))
      assert.equal("OperoError: no", (said(errors.OperoError "no")))
      assert.equal("shown", (said(shown_by(function() return "shown" end))))
    end)

    it("of any type has what follows appended, and fields", function()
      local message, fields = said(nil, nil)
      assert.equal("nil nil", message)
      assert.same({}, fields)
      message, fields = said({ a = 1 }, "%s", { b = 2 })
      assert.equal('{"a":1} %s', message)
      assert.same({ b = 2 }, fields)
      message, fields = said(5, { b = 2 })
      assert.equal("5", message)
      assert.same({ b = 2 }, fields)
    end)
  end)

  describe("has for its fields", function()
    it("the table behind the arguments that the format has room for", function()
      for _, case in ipairs {
        { "m", "m" }, { "%s", "1", 1 }, { "%s %d", "a 2", "a", 2 }, { "%%", "%" },
        { "%s", "nil", nil, n = 3 }, { "%y", "%y" }, { "m", "m 1 2", 1, 2 },
        { "%s", "[1]", { 1 } }, { "%s", "x nil", "x", nil, n = 4 },
      } do
        local arguments = table.pack(table.unpack(case, 3, case.n or #case))
        arguments[arguments.n + 1] = { a = 1, b = { 2 } }
        local message, fields = said(case[1], table.unpack(arguments, 1, arguments.n + 1))
        assert.equal(case[2], message)
        assert.same({ a = 1, b = { 2 } }, fields)
      end
    end)

    it("no table that a directive takes", function()
      local message, fields = said("%s", { a = 1 })
      assert.equal('{"a":1}', message)
      assert.same({}, fields)
      message, fields = said("%s %s", "x", { a = 1 })
      assert.equal('x {"a":1}', message)
      assert.same({}, fields)
    end)

    it("no table that is not the last", function()
      local message, fields = said("m", { a = 1 }, nil)
      assert.equal('m {"a":1} nil', message)
      assert.same({}, fields)
      message, fields = said("m", { a = 1 }, { b = 2 })
      assert.equal('m {"a":1}', message)
      assert.same({ b = 2 }, fields)
    end)

    it("no value that tostring has a way to show", function()
      for _, value in ipairs {
        errors.OperoError "shown", setmetatable({ a = 1 }, { __name = "shown" }),
        shown_by(function() return "shown" end),
      } do
        local message, fields = said("m", value)
        assert.matches("^m .*shown", message)
        assert.same({}, fields)
      end
    end)

    it("a table with another metatable, which is read raw", function()
      local _, fields = said("m", setmetatable({ a = 1 }, {
        __index = function() error "asked" end,
        __pairs = function() error "asked" end,
        __len = function() error "asked" end,
        __metatable = "hidden",
      }))
      assert.same({ a = 1 }, fields)
    end)

    it("nothing, if it is empty", function()
      local message, fields = said("m", {})
      assert.equal("m", message)
      assert.same({}, fields)
      assert.equal("app: m", records[1].line)
    end)

    it("values of every type", function()
      local co = coroutine.create(print)
      local _, fields = said("m", {
        integer = 1, float = 1.5, string = "s", yes = true, no = false, list = { 1, "a", { 2 } },
        map = { a = { b = 1 } }, fn = print, userdata = io.stdout, thread = co, empty = {},
      })
      assert.same({
        integer = 1, float = 1.5, string = "s", yes = true, no = false, list = { 1, "a", { 2 } },
        map = { a = { b = 1 } }, fn = tostring(print), userdata = tostring(io.stdout),
        thread = tostring(co), empty = {},
      }, fields)
    end)

    it("names that are strings, whatever they were", function()
      local _, fields = said("m", {
        "one", [2.5] = "float", [true] = "boolean", [errors.OperoError "e"] = "error", a = "a",
      })
      assert.same({
        ["1"] = "one", ["2.5"] = "float", ["true"] = "boolean", ["OperoError: e"] = "error",
        a = "a",
      }, fields)
    end)

    it("copies: what is changed afterwards is not seen", function()
      local list = { 1, 2 }
      local _, fields = said("m", { list = list })
      list[1] = "changed"
      assert.same({ 1, 2 }, fields.list)
    end)

    it("lists for tables with the indices from 1 on, objects for all others", function()
      said("m", {
        a = { 1, 2, 3 }, b = { 1, 2, x = 3 }, c = {}, d = { [2] = "two" }, e = { { 1 }, { {} } },
        f = { [1] = 1 }, g = { [1.0] = "one" }, h = { [0] = 0 },
      })
      assert.equal('app: m  a=[1,2,3] b={"1":1,"2":2,"x":3} c={} d={"2":"two"} e=[[1],[{}]] '
        .. 'f=[1] g=["one"] h={"0":0}', records[1].line)
    end)

    it("null for holes in lists", function()
      said("m", { a = { 1, nil, 3 } })
      assert.equal("app: m  a=[1,null,3]", records[1].line)
      assert.same({ 1, nil, 3 }, records[1].fields.a)
    end)
  end)

  describe("shows", function()
    it("tables in messages as JSON", function()
      assert.equal('[1,2.5,"a\\n\\"b\\"",{"x":{},"y":false}] {}',
        (said("%s %s", { 1, 2.5, 'a\n"b"', { x = {}, y = false } }, {})))
      assert.equal('{"a":"\\u001b[1m\\ufffd"}', (said("%s", { a = "\27[1m\xff" })))
      assert.equal('["NaN","Infinity",1.0]', (said("%s", { 0 / 0, 1 / 0, 1.0 })))
      assert.equal('see: {"a":1}!', (said("see: %s!", { a = 1 })))
    end)

    it("them so with a width and a precision, too", function()
      assert.equal("[ [1,2]]", (said("[%6s]", { 1, 2 })))
      assert.equal("[[1,2] ]", (said("[%-6s]", { 1, 2 })))
      assert.equal("[[1,]", (said("[%.3s]", { 1, 2 })))
    end)

    it("errors as tostring does, with what caused them", function()
      local Refused = errors.class("Refused")
      local err = Refused("not now", {
        cause = errors.TimeoutError("too slow", { cause = "the wire" }),
      })
      local text = "Refused: not now\ncaused by: TimeoutError: too slow\ncaused by: the wire"
      assert.equal(text, tostring(err))
      assert.equal(text, (said(err)))
      assert.equal("failed: " .. text, (said("failed: %s", err)))
      assert.equal("failed: " .. text, (said("failed:", err)))
      local message, fields = said("failed", { error = err, list = { err } })
      assert.equal("failed", message)
      assert.same({ error = text, list = { text } }, fields)
      assert.equal('app: failed  error="' .. text:gsub("\n", "\\n") .. '" list=["'
        .. text:gsub("\n", "\\n") .. '"]', records[#records].line)
    end)

    it("errors of classes with a __tostring of their own by that", function()
      local Own = errors.class("Own")
      function Own.__tostring(err) return "<" .. err.message .. ">" end
      assert.equal("<x>", (said("%s", Own "x")))
    end)

    it("values with a __name as tostring does", function()
      local value = setmetatable({ secret = 1 }, { __name = "Thing" })
      assert.equal(tostring(value), (said("%s", value)))
      assert.matches("^Thing: ", (said("%s", value)))
      local _, fields = said("m", { thing = value })
      assert.equal(tostring(value), fields.thing)
    end)

    it("a table that is found twice, but not within itself, twice", function()
      local shared = { 1 }
      local _, fields = said("m", { a = shared, b = { shared, shared } })
      assert.same({ a = { 1 }, b = { { 1 }, { 1 } } }, fields)
    end)
  end)

  describe("bears a __tostring that", function()
    local CANNOT <const> = "(a table that cannot be shown)"

    -- All places where a value can stand.
    local function shown_everywhere(value, expected)
      assert.equal(expected, (said(value)))
      assert.equal(expected, (said("%s", value)))
      assert.equal(expected, (said("%d", value)))
      assert.equal(("%60s"):format(expected), (said("%60s", value)))
      assert.equal("m " .. expected, (said("m", value)))
      local _, fields = said("m", { a = value, b = { value }, [value] = 1 })
      assert.same({ a = expected, b = { expected }, [expected] = 1 }, fields)
    end

    it("raises an error of any type", function()
      for _, err in ipairs { "no", {}, 5, false, errors.OperoError "no" } do
        shown_everywhere(shown_by(function() error(err) end), CANNOT)
      end
      shown_everywhere(shown_by(function() error() end), CANNOT)
    end)

    it("returns no string", function()
      shown_everywhere(shown_by(function() end), CANNOT)
      shown_everywhere(shown_by(function() return {} end), CANNOT)
      shown_everywhere(shown_by(function() return 5 end), "5")
    end)

    it("cannot be called", function()
      shown_everywhere(shown_by(true), CANNOT)
      shown_everywhere(shown_by {}, CANNOT)
    end)

    it("yields, or suspends the task", function()
      local yielding = shown_by(function()
        coroutine.yield()
        return "yielded"
      end)
      local sleeping = shown_by(function()
        opero.sleep(1)
        return "slept"
      end)
      coroutine.wrap(function() shown_everywhere(yielding, CANNOT) end)()
      opero.simulate(function()
        shown_everywhere(yielding, CANNOT)
        shown_everywhere(sleeping, CANNOT)
        assert.equal(0, opero.now())
      end)
    end)

    it("never ends calling itself", function()
      local value
      value = shown_by(function() return tostring(value) end)
      shown_everywhere(value, CANNOT)
      value = shown_by(function(self)
        local function deeper(n) return n + deeper(n + 1) end
        return self and deeper(1)
      end)
      assert.equal(CANNOT, (said("%s", value)))
    end)

    it("logs: its record is one of its own, and comes first", function()
      local value = shown_by(function()
        log:info("inner %s", { x = 1 }, { a = "inner" })
        return "value"
      end)
      log:info("outer %s and %s", value, "more", { b = value, c = "outer" })
      assert.same({ 'inner {"x":1}', 'inner {"x":1}', "outer value and more" }, messages(records))
      assert.same({ a = "inner" }, records[1].fields)
      assert.same({ b = "value", c = "outer" }, records[3].fields)
    end)

    it("logs itself, and so on: that ends, and the outer record is not lost", function()
      local value
      value = shown_by(function()
        log:info("inner %s", value, { value = value })
        return "value"
      end)
      log:info("outer %s", value)
      assert.equal("outer value", records[#records].message)
      for i = 1, #records - 1 do
        assert.equal("inner value", records[i].message)
      end
      assert.is_true(#records > 1 and #records < 100)
      assert.equal("as ever", (said "as ever"))
    end)

    it("changes the table it is in", function()
      local fields
      local value = shown_by(function()
        for name in pairs(fields) do
          fields[name] = nil
        end
        for i = 1, 100 do
          fields["new" .. i] = i
        end
        collectgarbage()
        return "value"
      end)
      fields = { a = value, b = value, c = value, list = { value, 1, 2 } }
      assert.equal("m", (said("m", fields)))
    end)

    it("changes the list it is in", function()
      local list = {}
      list[1], list[2], list[3] = shown_by(function()
        list[2], list[3] = nil, nil
        return "value"
      end), 2, 3
      assert.equal("m", (said("m", { list = list })))
    end)

    it("collects garbage, changes the context, and configures logging", function()
      local later = {}
      local value = shown_by(function()
        collectgarbage()
        log:add_context { context = "added" }
        opero.configure_logging { output = function(line) later[#later + 1] = line end,
          format = "plain" }
        collectgarbage()
        return "value"
      end)
      opero.log_context(log, { before = ("x"):rep(100) }, function()
        log:info("%s", value, { a = value, b = ("y"):rep(100) })
      end)
      assert.same({}, records)
      assert.same({
        ("app: value  before=%s a=value b=%s"):format(("x"):rep(100), ("y"):rep(100)),
      }, later)
    end)
  end)

  describe("is cut, and says how much is missing:", function()
    it("strings after 8 KiB", function()
      for _, length in ipairs { STRING_MAX - 1, STRING_MAX } do
        local _, fields = said("m", { a = ("x"):rep(length), b = { ("y"):rep(length) } })
        assert.equal(("x"):rep(length), fields.a)
        assert.equal(("y"):rep(length), fields.b[1])
      end
      local _, fields = said("m", {
        a = ("x"):rep(STRING_MAX + 1), b = { ("y"):rep(100000) },
        c = shown_by(function() return ("z"):rep(STRING_MAX + 5) end),
      })
      assert.equal(("x"):rep(STRING_MAX) .. "... (1 bytes more)", fields.a)
      assert.equal(("y"):rep(STRING_MAX) .. ("... (%d bytes more)"):format(100000 - STRING_MAX),
        fields.b[1])
      assert.equal(("z"):rep(STRING_MAX) .. "... (5 bytes more)", fields.c)
    end)

    it("messages after 16 KiB", function()
      for _, length in ipairs { MESSAGE_MAX - 1, MESSAGE_MAX } do
        assert.equal(("x"):rep(length), (said(("x"):rep(length))))
        assert.equal(("x"):rep(length), (said("%s", ("x"):rep(length))))
      end
      local expected = ("x"):rep(MESSAGE_MAX) .. "... (7 bytes more)"
      assert.equal(expected, (said(("x"):rep(MESSAGE_MAX + 7))))
      assert.equal(expected, (said("%s", ("x"):rep(MESSAGE_MAX + 7))))
      assert.equal(expected, (said("%s%s", ("x"):rep(10000), ("x"):rep(MESSAGE_MAX - 9993))))
      assert.equal(("%s ... (1 bytes more)"):format(("x"):rep(MESSAGE_MAX - 1)),
        (said(("x"):rep(MESSAGE_MAX - 1), 5)))
    end)

    it("never within a character", function()
      for _, character in ipairs { "é", "€", "😀" } do
        for offset = 0, #character - 1 do
          local function filled(size)
            return ("x"):rep(offset) .. character:rep((size + 100) // #character)
          end
          local function expected(size)
            local whole = filled(size)
            local kept = offset + (size - offset) // #character * #character
            return whole:sub(1, kept) .. ("... (%d bytes more)"):format(#whole - kept)
          end
          local message, fields = said("%s", filled(MESSAGE_MAX), {
            [filled(NAME_MAX)] = filled(STRING_MAX),
          })
          assert.equal(expected(MESSAGE_MAX), message)
          assert.same({ [expected(NAME_MAX)] = expected(STRING_MAX) }, fields)
          assert.truthy(utf8.len(records[#records].line))
        end
      end
    end)

    it("but in the middle of what is no UTF-8", function()
      local message = said(("\x80"):rep(MESSAGE_MAX + 10))
      assert.equal(("\x80"):rep(MESSAGE_MAX) .. "... (10 bytes more)", message)
    end)

    it("names after 200 bytes", function()
      local _, fields = said("m", { [("n"):rep(NAME_MAX)] = 1, [("m"):rep(NAME_MAX + 1)] = 2 })
      assert.same({
        [("n"):rep(NAME_MAX)] = 1, [("m"):rep(NAME_MAX) .. "... (1 bytes more)"] = 2,
      }, fields)
    end)

    it("lists after a hundred entries", function()
      local list = {}
      for i = 1, ENTRIES_MAX do
        list[i] = i
      end
      local _, fields = said("m", { list = list })
      assert.same(list, fields.list)
      for i = 1, 50 do
        list[ENTRIES_MAX + i] = i
      end
      _, fields = said("m", { list = list })
      assert.equal(ENTRIES_MAX + 1, #fields.list)
      assert.equal(ENTRIES_MAX, fields.list[ENTRIES_MAX])
      assert.equal("... (50 more)", fields.list[ENTRIES_MAX + 1])
    end)

    it("objects after a hundred entries, the fields too", function()
      local map = {}
      for i = 1, ENTRIES_MAX do
        map["n" .. i] = i
      end
      local _, fields = said("m", map)
      assert.same(map, fields)
      for i = 1, 50 do
        map["more" .. i] = i
      end
      local function check(cut)
        local count = 0
        for name, value in pairs(cut) do
          count = count + 1
          assert.equal(name == "..." and "and more" or map[name], value)
        end
        assert.equal(ENTRIES_MAX + 1, count)
      end
      _, fields = said("m", map)
      check(fields)
      _, fields = said("m", { map = map })
      check(fields.map)
    end)

    it("tables after eight levels", function()
      local function nested(levels, bottom)
        return levels == 0 and bottom or { { x = nested(levels - 2, bottom) } }
      end
      assert.equal((said("%s", nested(8, "bottom"))),
        ('[{"x":'):rep(4) .. '"bottom"' .. ("}]"):rep(4))
      assert.equal((said("%s", nested(10, "bottom"))),
        ('[{"x":'):rep(4) .. '"{...}"' .. ("}]"):rep(4))
      local _, fields = said("m", { a = nested(6, { "bottom" }), b = nested(8, "bottom") })
      assert.same({ a = nested(6, { "bottom" }), b = nested(6, { "{...}" }) }, fields)
    end)

    it("all of it, when it is too much", function()
      local huge = ("x"):rep(1000)
      for _ = 1, 4 do -- as many as 90 ^ 4 of them
        local list = {}
        for i = 1, 90 do
          list[i] = huge
        end
        huge = list
      end
      local message = said("%s", huge)
      assert.matches("%.%.%. %(%d+ bytes more%)$", message)
      assert.is_true(#message < MESSAGE_MAX + 100)
      local _, fields = said("m", { huge = huge, more = huge })
      assert.is_table(fields)
      assert.is_true(#records[#records].line < 200000)
    end)
  end)

  it("breaks off cycles", function()
    local cycle = { n = 1 }
    cycle.self, cycle.list = cycle, { cycle }
    local IN <const> = "(the table it is in)"
    local shown = { n = 1, self = IN, list = { IN } }
    local _, fields = said("m", { cycle = cycle, again = { cycle } })
    assert.same({ cycle = shown, again = { shown } }, fields)
    _, fields = said("m", cycle)
    assert.same(shown, fields)
    assert.equal(('{"list":["%s"],"n":1,"self":"%s"}'):format(IN, IN), (said("%s", cycle)))
    local a, b = {}, {}
    a.b, b.a = b, a
    _, fields = said("m", a)
    assert.same({ b = { a = IN } }, fields)
  end)

  describe("is made wherever it is asked for:", function()
    it("in coroutines, tasks and finalizers", function()
      coroutine.wrap(function() said("in a coroutine") end)()
      opero.run(function()
        said("in a task")
        coroutine.wrap(function() said("in a coroutine of a task") end)()
      end)
      do
        setmetatable({}, { __gc = function() said("in a finalizer") end })
      end
      collectgarbage()
      collectgarbage()
      assert.same({
        "in a coroutine", "in a task", "in a coroutine of a task", "in a finalizer",
      }, messages(records))
    end)

    -- What logs when there is almost no room any more cannot call functions: a file takes it.
    local function to_file(fn)
      local path = os.tmpname()
      finally(function() os.remove(path) end)
      opero.configure_logging { level = "debug", output = { file = path }, format = "plain" }
      fn()
      records = log_support.record { format = "plain" }
      local file <close> = assert(io.open(path))
      return file:read("a")
    end

    it("in callbacks of C functions, as deep as they can be", function()
      local value = shown_by(function() return "shown" end)
      local begun, ended = 0, 0
      local function nest()
        begun = begun + 1
        log:info("%d %s", begun, value, { value = value })
        ended = ended + 1
        string.gsub("x", "x", nest)
      end
      local text = to_file(function()
        assert.is_false(pcall(nest)) -- "C stack overflow"
      end)
      assert.is_true(begun > 50)
      assert.equal(begun, ended)
      assert.matches("^app: 1 shown  value=shown\napp: 2 shown  value=shown\n", text)
      assert.equal(begun, select(2, text:gsub("\n", "\n")))
    end)

    it("with Lua's stack almost full", function()
      local from = math.huge
      local depth, begun, ended = 0, 0, 0
      local function nest(...)
        depth = depth + 1
        if depth >= from then
          begun = begun + 1
          log:info("%s of %s", depth, "many", { depth = depth })
          ended = ended + 1
        end
        return 1 + nest(...)
      end
      local function overflow()
        depth = 0
        assert.matches("stack overflow", support.raised(nest, table.unpack({}, 1, 10)))
      end
      overflow()
      from = depth - 20
      local text = to_file(overflow)
      assert.is_true(begun > 15)
      assert.is_true(ended >= begun - 1) -- for the last call of all there may be no room
      assert.matches(("^app: %d of many  depth=%d\n"):format(from, from), text)
      assert.equal("as ever", (said "as ever"))
    end)
  end)

  -- Whatever comes: no error, one record, one line of valid UTF-8.
  describe("is made of anything:", function()
    local extra = {
      function() return print end,
      function() return io.stdout end,
      function() return coroutine.create(print) end,
      function() return opero.get_logger "app" end,
      function(generator) return errors.OperoError("e", { cause = generator.int(1, 9) }) end,
      function(generator)
        return shown_by(function() error(generator.int(1, 9)) end)
      end,
      function() return shown_by(function() return "\xff\n\0" end) end,
      function() return setmetatable({}, { __name = 5 }) end,
      function() return ("%"):rep(3) end,
      function() return "%s %d %5.1f %q %c" end,
      function() return ("é"):rep(9000) end,
      function() return math.mininteger end,
    }

    local FLAGS <const>, LETTERS <const> = "-+ #0", "diuoxXcaAeEfFgGspq%"

    local function any_format(int)
      local parts = {}
      for i = 1, int(1, 8) do
        local letter = int(1, #LETTERS)
        local flag = int(0, #FLAGS)
        parts[i] = int(1, 2) == 1 and "%" .. string.char(int(0, 255))
          or ("%%%s%d.%d%s"):format(FLAGS:sub(flag, flag), int(0, 120), int(0, 120),
            LETTERS:sub(letter, letter))
      end
      return table.concat(parts)
    end

    for seed = 1, 4 do
      it("seed " .. seed, function()
        local generator = values.generator(seed, extra)
        local int = generator.int
        for _ = 1, 250 do
          local arguments = { n = int(0, 6) }
          for i = 1, arguments.n do
            arguments[i] = generator.value(int(0, 2))
          end
          if int(1, 3) > 1 then
            arguments[1] = any_format(int)
          end
          records[1] = nil
          log:warning(table.unpack(arguments, 1, arguments.n))
          local line = records[1] and records[1].line
          if not line or line:find("[%z\1-\31\127]") or not utf8.len(line) then
            assert.same("one line of valid UTF-8", { line = line, arguments = arguments })
          end
        end
      end)
    end
  end)
end)
