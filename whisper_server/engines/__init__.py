"""The engines: each turns windows of audio into text behind `core.engine.Engine`."""
