"""Live streams in real time: how soon text comes, how soon it is final, and what it costs."""
