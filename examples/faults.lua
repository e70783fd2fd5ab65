-- Ways to answer badly. A responder takes the place of http_server.respond.

local http_server = require "http_server"
local opero = require "opero"

local faults = {}

local STALL_SECONDS = 30

---What a faulty server does in place of answering.
---@type table<string, fun(connection: Socket, response: Response)>
local kinds = {
  refuse = function(connection)
    connection:reset()
  end,

  -- Half of the answer, then silence, until the client has had enough.
  stall = function(connection, response)
    local whole = http_server.head(response) .. response.body
    connection:send(whole:sub(1, #whole // 2))
    opero.timeout(STALL_SECONDS, connection.receive, connection)
  end,

  cut = function(connection, response)
    local whole = http_server.head(response) .. response.body
    connection:send(whole:sub(1, -1 - math.max(1, #response.body // 2)))
  end,

  busy = function(connection)
    http_server.respond(connection, http_server.response(503, nil, { ["Retry-After"] = 1 }))
  end,
}

---The names of the kinds, in alphabetical order.
faults.KINDS = { "busy", "cut", "refuse", "stall" }

---@param text string
---@return number # in [0, 1), the same for the same text
local function fraction(text)
  -- FNV-1a, then the finisher of splitmix64: close texts give distant numbers.
  local hash = 0xcbf29ce484222325
  for i = 1, #text do
    hash = (hash ~ text:byte(i)) * 0x100000001b3
  end
  hash = (hash ~ (hash >> 30)) * 0xbf58476d1ce4e5b9
  hash = (hash ~ (hash >> 27)) * 0x94d049bb133111eb
  return ((hash ~ (hash >> 31)) >> 11) / 2 ^ 53
end

---What happens to the n-th request for a path depends on nothing but these arguments: not on
---time, not on what else is asked for.
---@param seed integer
---@param share number of the requests that go wrong, from 0 to 1
---@param path string
---@param n integer
---@return string? kind nil: this request is answered
function faults.plan(seed, share, path, n)
  local key = ("%d:%d:%s"):format(seed, n, path)
  if fraction(key) < share then
    return faults.KINDS[1 + math.floor(fraction("kind:" .. key) * #faults.KINDS)]
  end
end

---@param seed integer
---@param share number
---@return fun(connection: Socket, response: Response, path: string?) respond
---@return table<string, integer> injected how often each kind has been, kept up to date
function faults.flaky(seed, share)
  local seen, injected = {}, {}
  for _, kind in ipairs(faults.KINDS) do
    injected[kind] = 0
  end
  local function respond(connection, response, path)
    if not path then
      return http_server.respond(connection, response)
    end
    seen[path] = (seen[path] or 0) + 1
    local kind = faults.plan(seed, share, path, seen[path])
    if not kind then
      return http_server.respond(connection, response)
    end
    injected[kind] = injected[kind] + 1
    kinds[kind](connection, response)
  end
  return respond, injected
end

---Sound, but in no hurry.
---@param seconds number until it begins to answer
---@return fun(connection: Socket, response: Response)
function faults.slow(seconds)
  return function(connection, response)
    opero.sleep(seconds)
    http_server.respond(connection, response)
  end
end

return faults
