"""`make demo`: train every tiny config and print a table of results."""
