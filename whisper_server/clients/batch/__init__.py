"""Commands that send everything at once: `.file`."""
