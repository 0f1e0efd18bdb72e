"""Terminal output shared by all commands: exit codes, messages, tables. Imports neither torch nor the command line."""
