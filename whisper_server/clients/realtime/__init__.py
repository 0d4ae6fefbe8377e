"""Commands that stream while they hear: `.file` and `.mic`."""
