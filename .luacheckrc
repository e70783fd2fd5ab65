std = "lua54"
max_line_length = 100
cache = false
files["spec"] = { std = "+busted" }
files[".busted"] = { std = "lua54" }
