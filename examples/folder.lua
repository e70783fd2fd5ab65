-- The files of a folder, read with luaposix and plain io: disks answer at once.

local dirent = require "posix.dirent"
local stat = require "posix.sys.stat"
local unistd = require "posix.unistd"

local folder = {}

-- Folders with many small files that most systems have.
local USUAL = { "/usr/include", "/usr/local/include", "/usr/share/lua", "/usr/share", "/usr/lib" }
local ENOUGH = 100
local SIZE_LIMIT = 4 * 1024 * 1024

---Adds the paths of readable files, relative to root, in the order of their names.
---@param root string
---@param inner string "" or a folder in root, with a slash at its end
---@param list string[]
local function walk(root, inner, list)
  local ok, names = pcall(dirent.dir, root .. "/" .. inner)
  if not ok then
    return -- not ours to read
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local path = inner .. name
    -- Symbolic links are left out, or the walk might not end.
    local status = name ~= "." and name ~= ".." and stat.lstat(root .. "/" .. path)
    if status and stat.S_ISDIR(status.st_mode) ~= 0 then
      walk(root, path .. "/", list)
    elseif
      status
      and stat.S_ISREG(status.st_mode) ~= 0
      and status.st_size <= SIZE_LIMIT
      and unistd.access(root .. "/" .. path, "r")
    then
      list[#list + 1] = path
    end
  end
end

---@param root string
---@param limit integer when the folder has more files, that many are picked, spread evenly
---@return string[] paths relative to root
function folder.list(root, limit)
  local all = {}
  walk(root, "", all)
  local picked = {}
  local count = math.min(limit, #all)
  for i = 1, count do
    picked[i] = all[1 + (i - 1) * #all // count]
  end
  return picked
end

---@return string? root the first of the usual folders that has files enough
function folder.default()
  for _, root in ipairs(USUAL) do
    if #folder.list(root, ENOUGH) == ENOUGH then
      return root
    end
  end
end

---@param root string
---@return boolean
function folder.exists(root)
  local status = stat.stat(root)
  return status ~= nil and stat.S_ISDIR(status.st_mode) ~= 0
end

---@param root string
---@param path string
---@return string? content nil: there is no such file
function folder.read(root, path)
  local file <close> = io.open(root .. "/" .. path, "rb")
  return file and file:read("a")
end

return folder
