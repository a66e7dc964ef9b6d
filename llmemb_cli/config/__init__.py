"""Typed settings: one model per stage, one place for every name, default, unit and source."""
