-- The smallest HTTP/1.1 client that is still strict: one GET, one connection.

local opero = require "opero"
local tcp = require "tcp"

local http_client = {}

local HEAD_LIMIT = 16 * 1024
local BODY_LIMIT = 64 * 1024 * 1024

---The answer is not HTTP, or is not whole.
http_client.BrokenResponse = opero.errors.class("BrokenResponse", tcp.ConnectionError)
---Any status but 200; the field `status` has it.
http_client.StatusError = opero.errors.class("StatusError")
---503; the field `retry_after` has the seconds that the server asks for, where it does.
http_client.Unavailable = opero.errors.class("Unavailable", http_client.StatusError)

local function broken(...)
  error(http_client.BrokenResponse(string.format(...)))
end

---@param path string
---@return string # as it stands in a request line
function http_client.encode(path)
  return (path:gsub("[^%w%-._~/]", function(char)
    return ("%%%02X"):format(char:byte())
  end))
end

---@param head string
---@return integer status
---@return table<string, string> headers by their names in lower case
local function parse(head)
  local status = head:match("^HTTP/1%.[01] (%d%d%d)[ \r]")
  if not status then
    broken("not an HTTP response: %q", head:sub(1, 40))
  end
  local headers = {}
  for name, value in head:gmatch("\r\n([^:%s]+):[ \t]*([^\r]*)") do
    headers[name:lower()] = value:match("^(.-)[ \t]*$")
  end
  return math.tointeger(status), headers
end

---@param connection Socket
---@return string head, string rest what came after it
local function receive_head(connection)
  local data = ""
  while true do
    local head, rest = data:match("^(.-\r\n)\r\n(.*)$")
    if head then
      return head, rest
    end
    local more = connection:receive()
    if more == "" then
      broken("the server hung up after %d bytes of the response's head", #data)
    end
    data = data .. more
    if #data > HEAD_LIMIT and not data:find("\r\n\r\n", 1, true) then
      broken("the response's head is longer than %d bytes", HEAD_LIMIT)
    end
  end
end

---@param connection Socket
---@param first string what of the body came with the head
---@param length integer
---@return string body
local function receive_body(connection, first, length)
  local parts, size = { first }, #first
  while size < length do
    local more = connection:receive()
    if more == "" then
      broken("the body ends after %d of %d bytes", size, length)
    end
    parts[#parts + 1], size = more, size + #more
  end
  if size > length then
    broken("the body goes on after its %d bytes", length)
  end
  return table.concat(parts)
end

---Fetches a file from a server of this machine. It takes as long as it takes: put it under
---opero.timeout. Raises ConnectionError, BrokenResponse, StatusError or Unavailable.
---@param port integer
---@param path string what to fetch, without a slash in front
---@return string body
function http_client.get(port, path)
  local connection <close> = tcp.connect(port)
  connection:send(
    ("GET /%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n"):format(
      http_client.encode(path), port
    )
  )
  local head, rest = receive_head(connection)
  local status, headers = parse(head)
  if status == 503 then
    local seconds = tonumber(headers["retry-after"])
    error(http_client.Unavailable("503 for " .. path, { status = status, retry_after = seconds }))
  elseif status ~= 200 then
    error(http_client.StatusError(status .. " for " .. path, { status = status }))
  end
  local length = math.tointeger(tonumber(headers["content-length"]))
  if not length or length < 0 or length > BODY_LIMIT then
    broken("Content-Length is %s", headers["content-length"])
  end
  return receive_body(connection, rest, length)
end

return http_client
