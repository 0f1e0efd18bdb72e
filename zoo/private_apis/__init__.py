"""Private APIs of torch, Lightning and jsonargparse, each used in one place and covered by a test."""
