"""Asynchronous orchestration of engines, models and audio."""
