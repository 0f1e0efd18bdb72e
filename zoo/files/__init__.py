"""Files that other processes may read or write at the same time: replaced as a whole, locked, named uniquely."""
