"""Terminal output shared by all commands: exit codes, one-sentence messages, tables. Imports neither torch nor the CLI.
"""
