"""The administrators' commands, one module a noun."""
