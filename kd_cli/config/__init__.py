"""Yaml and overrides become one checked, plain configuration."""
